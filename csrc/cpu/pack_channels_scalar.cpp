// The portable loops of pack_channels, and what the vector ones fall back on for odd ends.
#include <cstring>

#include "element.h"
#include "pack_channels.h"

namespace neq::pack {
namespace {

template <class Element>
void copy_rows(char* const* targets, const char* const* sources, int64_t rows, int64_t,
               const RowPlan& plan) {
  using Storage = typename Element::Storage;
  for (int64_t r = 0; r < rows; ++r) {
    auto* target = reinterpret_cast<Storage*>(targets[r]);
    const auto* source = reinterpret_cast<const Storage*>(sources[r]);
    for (int64_t i = 0; i < plan.count; ++i) target[i] = source[plan.index[i]];
    std::memset(target + plan.count, 0, (plan.width - plan.count) * sizeof(Storage));
  }
}

template <class Element>
void add_rows(double* sums, char* const* packed, int64_t rows, int64_t, int64_t width) {
  using Storage = typename Element::Storage;
  for (int64_t i = 0; i < width; ++i) {
    typename Element::Sum sum = 0;
    for (int64_t r = 0; r < rows; ++r) {
      sum += Element::load(reinterpret_cast<const Storage*>(packed[r])[i]);
    }
    sums[i] += sum;
  }
}

template <class Element>
double copy_strided(char* target, int64_t target_stride, const char* source, int64_t source_stride,
                    int64_t n) {
  using Storage = typename Element::Storage;
  auto* to = reinterpret_cast<Storage*>(target);
  const auto* from = reinterpret_cast<const Storage*>(source);
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) {
    const Storage value = from[k * source_stride];
    to[k * target_stride] = value;
    sum += Element::load(value);
  }
  return sum;
}

// Sums side by side keep the additions independent, so that a compiler can use what vectors
// there are without being allowed to reorder them.
template <class Element>
double sum_of(const typename Element::Storage* from, int64_t n) noexcept {
  constexpr int64_t kLanes = 32;
  typename Element::Sum sums[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += Element::load(from[k + lane]);
  }
  double sum = 0;
  for (const auto lane : sums) sum += lane;
  for (; k < n; ++k) sum += Element::load(from[k]);
  return sum;
}

template <class Element>
void copy_runs(double* sums, const Runs& shared) {
  using Storage = typename Element::Storage;
  const Runs runs = shared;
  const int64_t bytes = runs.length * sizeof(Storage);
  const RunsAhead ahead(runs, bytes);
  for (int64_t i = 0; i < runs.count; ++i) {
    const char* next = ahead.of(i);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(next + at);
    const char* source = runs.source + runs.index[i] * runs.source_step;
    std::memcpy(runs.target + i * runs.target_step, source, bytes);
    for (int64_t k = 0; sums && k < runs.length; k += kMaxRun) {
      sums[i] += sum_of<Element>(reinterpret_cast<const Storage*>(source) + k,
                                 runs.length - k < kMaxRun ? runs.length - k : kMaxRun);
    }
  }
}

template <class Element>
constexpr Kernels kKernels = {0,
                              0,
                              0,
                              copy_rows<Element>,
                              add_rows<Element>,
                              nullptr,
                              copy_runs<Element>,
                              copy_strided<Element>};

}  // namespace

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Double>;
    case NEQ_F16:
      return kKernels<Half>;
    case NEQ_BF16:
      return kKernels<BFloat16>;
    case NEQ_F32:
      break;
  }
  return kKernels<Float>;
}

}  // namespace neq::pack
