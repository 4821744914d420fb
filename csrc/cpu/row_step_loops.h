// The loops of row_sgd and row_adamw for one instruction set. The file that includes this one
// defines NEQ_TARGET and NEQ_INLINE, which carry the instruction set, and describes its elements:
// Scalar (storage, load, store), Vector, kLanes, load, store and store_lanes of a vector, and
// root_of and larger for vectors.
//
// Multiplications and additions are never fused (CMakeLists.txt), and division and square root are
// exact to the last bit, so that every instruction set gives the same bits.
#include <cstdint>

#include "../row_step_formula.h"
#include "row_step.h"

namespace neq::rows {
namespace {

template <Formula kFormula, class Element>
NEQ_INLINE void step_scalar(const Rounded<typename Element::Scalar::Sum>& n, char* const* at,
                            int64_t i) {
  using Scalar = typename Element::Scalar;
  using Storage = typename Scalar::Storage;
  constexpr int kCount = tensors_of(kFormula);
  typename Scalar::Sum x[kCount];
  for (int t = 0; t < kCount; ++t) x[t] = Scalar::load(reinterpret_cast<Storage*>(at[t])[i]);
  apply<kFormula>(n, x);
  for (int t = 0; t < kCount; ++t) {
    if (t != 1) reinterpret_cast<Storage*>(at[t])[i] = Scalar::store(x[t]);
  }
}

// Lanes whose bit is not set in `lanes` keep what they hold.
template <Formula kFormula, class Element, bool kMasked>
NEQ_INLINE void step_vector(const Rounded<typename Element::Scalar::Sum>& n, char* const* at,
                            int64_t i, uint32_t lanes) {
  using Storage = typename Element::Scalar::Storage;
  constexpr int kCount = tensors_of(kFormula);
  typename Element::Vector x[kCount];
  for (int t = 0; t < kCount; ++t) x[t] = Element::load(reinterpret_cast<Storage*>(at[t]) + i);
  apply<kFormula>(n, x);
  for (int t = 0; t < kCount; ++t) {
    if (t == 1) continue;
    auto* target = reinterpret_cast<Storage*>(at[t]) + i;
    if constexpr (kMasked) {
      Element::store_lanes(target, x[t], lanes);
    } else {
      Element::store(target, x[t]);
    }
  }
}

template <Formula kFormula, class Element>
NEQ_TARGET void runs(const Numbers& numbers, char* const* at, const Run* runs, int64_t count) {
  const Rounded<typename Element::Scalar::Sum> n(numbers);
  constexpr int64_t kBytes = sizeof(typename Element::Scalar::Storage);
  for (int64_t r = 0; r < count; ++r) {
    char* tensors[NEQ_ROW_TENSORS];
    for (int t = 0; t < tensors_of(kFormula); ++t) tensors[t] = at[t] + runs[r].offset * kBytes;
    const int64_t elements = runs[r].elements;
    int64_t i = 0;
    for (; i + Element::kLanes <= elements; i += Element::kLanes) {
      step_vector<kFormula, Element, false>(n, tensors, i, 0);
    }
    for (; i < elements; ++i) step_scalar<kFormula, Element>(n, tensors, i);
  }
}

template <Formula kFormula, class Element>
NEQ_TARGET void masked(const Numbers& numbers, char* const* at, const uint64_t* mask,
                       int64_t count) {
  const Rounded<typename Element::Scalar::Sum> n(numbers);
  constexpr int64_t kLanes = Element::kLanes;
  char* tensors[NEQ_ROW_TENSORS];
  for (int t = 0; t < tensors_of(kFormula); ++t) tensors[t] = at[t];
  for (int64_t word = 0; word * 64 < count; ++word) {
    uint64_t left = mask[word];
    while (left) {
      const int64_t first = __builtin_ctzll(left) / kLanes * kLanes;
      const auto lanes = static_cast<uint32_t>(left >> first & ((uint64_t{1} << kLanes) - 1));
      const int64_t i = word * 64 + first;
      left &= ~(((uint64_t{1} << kLanes) - 1) << first);
      if (i + kLanes <= count && kLanes > 1) {
        step_vector<kFormula, Element, true>(n, tensors, i, lanes);
        continue;
      }
      for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        step_scalar<kFormula, Element>(n, tensors, i + __builtin_ctz(rest));
      }
    }
  }
}

template <class Element>
const Kernels& table(Formula formula) noexcept {
  static const Kernels kernels[kFormulas] = {
      {runs<Formula::kSgd, Element>, masked<Formula::kSgd, Element>},
      {runs<Formula::kSgdMomentum, Element>, masked<Formula::kSgdMomentum, Element>},
      {runs<Formula::kAdam, Element>, masked<Formula::kAdam, Element>},
      {runs<Formula::kAmsgrad, Element>, masked<Formula::kAmsgrad, Element>},
  };
  return kernels[static_cast<int>(formula)];
}

template <class Float32, class Float64, class Float16, class Brain16>
const Kernels& table_of(Formula formula, neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return table<Float64>(formula);
    case NEQ_F16:
      return table<Float16>(formula);
    case NEQ_BF16:
      return table<Brain16>(formula);
    case NEQ_F32:
      break;
  }
  return table<Float32>(formula);
}

}  // namespace
}  // namespace neq::rows
