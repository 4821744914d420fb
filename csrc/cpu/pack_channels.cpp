// pack_channels: packed[m, i, k] = dy[m, index[i], k],  bias[i] = sum over m, k of packed[m, i, k],
// in one pass over dy.
//
// All dimensions but the channels collapse as far as both tensors' strides allow. Then there are
// three ways to walk:
//   planes   neighbouring elements belong to one channel (NCHW): a run per (position, channel)
//   rows     neighbouring elements are neighbouring channels (channels_last, [tokens, C]): compact
//            a few rows, then sum their columns while they are in the cache
//   strided  anything else (transposed, expanded): short runs, element by element
// The work is cut into blocks by the sizes alone; each block sums into its own row of partial sums,
// and those are added in order. The number of threads therefore changes no bit.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "element.h"
#include "pack_channels.h"
#include "pack_channels_geometry.h"
#include "pack_channels_plan.h"
#include "status.h"

namespace neq::pack {

const Kernels& best_kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_kernels(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

namespace {

constexpr int64_t kRowChunkBytes = 16 << 10;
constexpr int64_t kPrefetchBytes = 2048;
// Of some 64 KiB each: waking another thread costs as much as one or two.
constexpr int64_t kTasksEach = 4;

struct Job {
  const Geometry& geometry;
  const Kernels& kernels;
  const char* source;
  char* target;
  RowPlan plan;
  double* partial;  // [blocks, padded(width)], null without a bias
};

// Inlined by force: a call that only prefetches looks like one without effect to a
// compiler, and is dropped.
[[gnu::always_inline]] inline void prefetch(const char* source, int64_t bytes) noexcept {
  for (int64_t at = 0; at < std::min(bytes, kPrefetchBytes); at += 64) {
    __builtin_prefetch(source + at);
  }
}

// In contiguous rows, spilling hits the next ones, which this block writes later; its last rows
// must not, nor any others. The same holds for reading short rows.
int64_t first_exact(const Geometry& geometry, int64_t begin, int64_t end) noexcept {
  const int64_t row_bytes = geometry.width * geometry.element;
  const bool contiguous = geometry.outer_dims == 1 && geometry.outer[0].target == row_bytes;
  const int64_t shortest = std::max<int64_t>(std::min(geometry.width, geometry.channels), 1);
  return contiguous ? std::max(begin, end - divide_up(kMaxSpill, shortest)) : begin;
}

// By groups: `merged` positions at a time, then what is left one by one.
void pack_groups(const Job& job, int64_t begin, int64_t end, double* sums) noexcept {
  const int64_t exact_from = first_exact(job.geometry, begin, end);
  char* targets[kMaxRows];
  const char* sources[kMaxRows];
  RowPlan plan = job.plan;
  Position position(job.geometry, begin);
  for (int64_t row = begin; row < end;) {
    if (end - row < plan.merged) plan.merged = 1;
    const int64_t rows = std::min(kMaxRows, (end - row) / plan.merged);
    for (int64_t r = 0; r < rows; ++r) {
      targets[r] = job.target + position.target();
      sources[r] = job.source + position.source();
      for (int64_t m = 0; m < plan.merged; ++m) position.advance();
    }
    row += rows * plan.merged;
    const int64_t exact = divide_up(std::max<int64_t>(row - exact_from, 0), plan.merged);
    job.kernels.pack_rows(sums, targets, sources, rows, std::min(exact, rows), plan);
  }
}

void pack_rows(const Job& job, int64_t block) noexcept {
  const Geometry& geometry = job.geometry;
  const int64_t begin = block_start(block, geometry.blocks, geometry.positions);
  const int64_t end = block_start(block + 1, geometry.blocks, geometry.positions);
  double* sums = job.partial ? job.partial + block * padded(geometry.width) : nullptr;
  if (job.kernels.pack_rows && job.plan.group_count > 0) {
    return pack_groups(job, begin, end, sums);
  }
  const int64_t row_bytes = std::max<int64_t>(geometry.width * geometry.element, 1);
  const int64_t chunk = std::clamp<int64_t>(kRowChunkBytes / row_bytes, 4, kMaxRows);
  const int64_t exact_from = first_exact(geometry, begin, end);
  char* targets[kMaxRows];
  const char* sources[kMaxRows];
  Position position(geometry, begin);
  for (int64_t row = begin; row < end; row += chunk) {
    const int64_t rows = std::min(chunk, end - row);
    for (int64_t r = 0; r < rows; ++r, position.advance()) {
      targets[r] = job.target + position.target();
      sources[r] = job.source + position.source();
    }
    const int64_t exact = std::clamp<int64_t>(row + rows - exact_from, 0, rows);
    job.kernels.copy_rows(targets, sources, rows, exact, job.plan);
    // After copying, not before: the processor then streams on its own. Summing would let it idle.
    if (row + rows < end) prefetch(job.source + position.source(), kPrefetchBytes);
    if (sums) job.kernels.add_rows(sums, targets, rows, exact, geometry.width);
  }
}

void zero_run(const Geometry& geometry, char* target, int64_t n) noexcept {
  for (int64_t k = 0; k < n; ++k) {
    std::memset(target + k * geometry.run.target, 0, geometry.element);
  }
}

// Where channel 0 starts in both tensors; `at` counts positions and the steps of their runs.
struct Start {
  const char* source;
  char* target;
};

Start start_of(const Job& job, int64_t at) noexcept {
  const Geometry& geometry = job.geometry;
  const Position position(geometry, at / geometry.run_steps);
  const int64_t skipped = at % geometry.run_steps * geometry.run_step;
  return {job.source + position.source() + skipped * geometry.run.source,
          job.target + position.target() + skipped * geometry.run.target};
}

// Active planes next to each other, this many bytes of them, are one long copy: memcpy makes those
// without reading what they overwrite.
constexpr int64_t kLongCopy = 64 << 10;

// Runs of the channels from `first` to `last`, without sums. `whole`: each is all that lies between
// it and the next channel's, in both tensors.
void copy_planes(const Job& job, Runs runs, bool whole) noexcept {
  const int32_t* const end = runs.index + runs.count;
  const auto copy_until = [&](const int32_t* index) {
    runs.count = index - runs.index;
    if (runs.count > 0) job.kernels.copy_runs(nullptr, runs);
    runs.target += runs.count * runs.target_step;
    runs.index = index;
  };
  for (const int32_t* from = runs.index; whole && from < end;) {
    const int32_t* to = from + 1;
    while (to < end && *to == to[-1] + 1) ++to;
    if (const int64_t bytes = (to - from) * runs.target_step; bytes >= kLongCopy) {
      copy_until(from);
      std::memcpy(runs.target, runs.source + *from * runs.source_step, bytes);
      runs.target += bytes;
      runs.index = to;
    }
    from = to;
  }
  copy_until(end);
}

// n elements of each channel from `first` to `last`.
void pack_step(const Job& job, Start here, Start next, int64_t first, int64_t last, int64_t n,
               double* sums) noexcept {
  const Geometry& geometry = job.geometry;
  const Dim& channel = geometry.channel;
  const int64_t active = std::min(last, job.plan.count);
  if (geometry.walk == Walk::kPlanes && first < active) {
    const Runs runs = {here.target + first * channel.target,
                       here.source,
                       next.source,
                       job.plan.index + first,
                       active - first,
                       n,
                       channel.target,
                       channel.source};
    const int64_t bytes = n * geometry.element;
    if (sums) {
      job.kernels.copy_runs(sums + first, runs);
    } else {
      copy_planes(job, runs, channel.target == bytes && channel.source == bytes);
    }
  }
  for (int64_t i = first; geometry.walk == Walk::kStrided && i < active; ++i) {
    const double sum = job.kernels.copy_strided(here.target + i * channel.target,
                                                geometry.run.target / geometry.element,
                                                here.source + job.plan.index[i] * channel.source,
                                                geometry.run.source / geometry.element, n);
    if (sums) sums[i] += sum;
  }
  for (int64_t i = std::max(first, active); i < last; ++i) {
    zero_run(geometry, here.target + i * channel.target, n);
  }
}

void pack_runs(const Job& job, int64_t block, int64_t column) noexcept {
  const Geometry& geometry = job.geometry;
  const int64_t begin = block_start(block, geometry.blocks, geometry.positions);
  const int64_t end = block_start(block + 1, geometry.blocks, geometry.positions);
  const int64_t first = block_start(column, geometry.columns, geometry.width);
  const int64_t last = block_start(column + 1, geometry.columns, geometry.width);
  double* sums = job.partial ? job.partial + block * padded(geometry.width) : nullptr;
  Start next = start_of(job, begin);
  for (int64_t at = begin; at < end; ++at) {
    const Start here = next;
    if (at + 1 < end) next = start_of(job, at + 1);
    const int64_t skipped = at % geometry.run_steps * geometry.run_step;
    const int64_t n = std::min(geometry.run_step, geometry.run.size - skipped);
    pack_step(job, here, next, first, last, n, sums);
  }
}

void run_tasks(void* arg, int64_t begin, int64_t end) {
  const Job& job = *static_cast<const Job*>(arg);
  for (int64_t task = begin; task < end; ++task) {
    if (job.geometry.walk == Walk::kRows) {
      pack_rows(job, task);
    } else {
      pack_runs(job, task / job.geometry.columns, task % job.geometry.columns);
    }
  }
}

template <class Element>
void store_bias(const Geometry& geometry, const double* partial, void* bias) noexcept {
  auto* out = static_cast<typename Element::Storage*>(bias);
  for (int64_t i = 0; i < geometry.width; ++i) {
    double sum = 0;
    for (int64_t block = 0; block < geometry.blocks; ++block) {
      sum += partial[block * padded(geometry.width) + i];
    }
    out[i] = Element::store(sum);
  }
}

void store_bias(const Geometry& geometry, const double* partial, void* bias) noexcept {
  switch (geometry.dtype) {
    case NEQ_F32:
      return store_bias<Float>(geometry, partial, bias);
    case NEQ_F64:
      return store_bias<Double>(geometry, partial, bias);
    case NEQ_F16:
      return store_bias<Half>(geometry, partial, bias);
    case NEQ_BF16:
      return store_bias<BFloat16>(geometry, partial, bias);
  }
}

// Scratch holds the partial sums, then the groups.
int64_t partial_count(const Geometry& geometry, bool bias) noexcept {
  return bias ? geometry.blocks * padded(geometry.width) : 0;
}

int64_t scratch_bytes(const Geometry& geometry, bool bias) noexcept {
  return partial_count(geometry, bias) * static_cast<int64_t>(sizeof(double)) +
         max_groups(geometry) * static_cast<int64_t>(sizeof(Group));
}

}  // namespace
}  // namespace neq::pack

int64_t neq_pack_channels_cpu_scratch(const neq_tensor* dy, int32_t dim, const neq_tensor* packed,
                                      const void* bias) {
  using namespace neq::pack;
  if (check_tensors(dy, dim, packed) != NEQ_OK) return -1;
  return scratch_bytes(understand(*dy, dim, *packed), bias != nullptr);
}

neq_status neq_pack_channels_cpu(const neq_tensor* dy, int32_t dim, const int32_t* index,
                                 const neq_tensor* packed, void* bias, neq_scratch scratch,
                                 const neq_parallel* parallel) {
  using namespace neq::pack;
  neq_status status = check_tensors(dy, dim, packed);
  if (status != NEQ_OK) return status;
  const Geometry geometry = understand(*dy, dim, *packed);
  int64_t count = 0;
  status = check_index(index, geometry.width, geometry.channels, &count);
  if (status == NEQ_OK) {
    status = neq::check_scratch(scratch, scratch_bytes(geometry, bias != nullptr));
  }
  if (status != NEQ_OK) return status;

  const int64_t partials = partial_count(geometry, bias != nullptr);
  auto* partial = static_cast<double*>(scratch.data);
  auto* groups = reinterpret_cast<Group*>(partial + partials);
  std::fill_n(partial, partials, 0.0);
  const Kernels& loops = best_kernels(geometry.dtype);
  // Of an empty dy nothing is read, but places in it are computed, for which null will not do.
  const void* const source = dy->data ? dy->data : packed->data;
  Job job = {geometry,
             loops,
             static_cast<const char*>(source),
             static_cast<char*>(packed->data),
             plan_rows(loops, geometry, index, count, groups),
             bias ? partial : nullptr};
  const bool work = geometry.positions > 0 && geometry.width > 0;
  const int64_t tasks = work ? geometry.blocks * geometry.columns : 0;
  if (parallel && tasks > 1) {
    parallel->run(parallel->context, 0, tasks, kTasksEach, run_tasks, &job);
  } else {
    run_tasks(&job, 0, tasks);
  }
  if (bias) store_bias(geometry, partial, bias);
  return NEQ_OK;
}
