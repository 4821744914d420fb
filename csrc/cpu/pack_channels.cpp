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
#include "pack_channels.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "element.h"
#include "status.h"

namespace neq::pack {
namespace {

constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kBlockBytes = 64 << 10;
constexpr int64_t kRowChunkBytes = 16 << 10;
constexpr int64_t kStridedRun = 64;
constexpr int64_t kPrefetchBytes = 2048;

enum class Walk { kPlanes, kRows, kStrided };

struct Dim {
  int64_t size;
  int64_t source;  // strides in bytes
  int64_t target;
};

// The call once it is understood: `outer` dimensions around channels and, except for rows, a run.
struct Geometry {
  Walk walk;
  neq_dtype dtype;
  int64_t element;  // bytes
  int64_t channels;
  int64_t width;
  Dim channel;
  Dim run;
  Dim outer[NEQ_MAX_DIMS];
  int32_t outer_dims;
  int64_t run_step;   // longest run taken at once
  int64_t run_steps;  // steps per run
  int64_t positions;  // product of outer sizes and run_steps
  int64_t blocks;     // of positions; one row of partial sums each
  int64_t columns;    // blocks of channels, when there are too few positions
};

int64_t element_bytes(neq_dtype dtype) noexcept {
  return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2;
}

int64_t divide_up(int64_t a, int64_t b) noexcept { return (a + b - 1) / b; }

int64_t padded(int64_t width) noexcept { return divide_up(width, kSumLanes) * kSumLanes; }

// Where block `block` of `blocks` starts in [0, total).
int64_t block_start(int64_t block, int64_t blocks, int64_t total) noexcept {
  return total / blocks * block + std::min(block, total % blocks);
}

// Counts through the outer dimensions, the last one fastest, and keeps both offsets.
class Position {
 public:
  Position(const Geometry& geometry, int64_t ordinal) noexcept : geometry_(geometry) {
    for (int32_t d = geometry.outer_dims - 1; d >= 0; --d) {
      const Dim& dim = geometry.outer[d];
      at_[d] = ordinal % dim.size;
      ordinal /= dim.size;
      source_ += at_[d] * dim.source;
      target_ += at_[d] * dim.target;
    }
  }

  void advance() noexcept {
    for (int32_t d = geometry_.outer_dims - 1; d >= 0; --d) {
      const Dim& dim = geometry_.outer[d];
      source_ += dim.source;
      target_ += dim.target;
      if (++at_[d] < dim.size) return;
      source_ -= dim.size * dim.source;
      target_ -= dim.size * dim.target;
      at_[d] = 0;
    }
  }

  int64_t source() const noexcept { return source_; }
  int64_t target() const noexcept { return target_; }

 private:
  const Geometry& geometry_;
  int64_t at_[NEQ_MAX_DIMS] = {};
  int64_t source_ = 0;
  int64_t target_ = 0;
};

neq_status check_tensor(const char* name, const neq_tensor* tensor) noexcept {
  if (!tensor) return fail(NEQ_INVALID_ARGUMENT, "%s: expected a tensor, got a null pointer", name);
  if (tensor->dtype < NEQ_F32 || tensor->dtype > NEQ_BF16) {
    return fail(NEQ_UNSUPPORTED, "%s: expected dtype f32, f64, f16 or bf16, got code %d", name,
                static_cast<int>(tensor->dtype));
  }
  if (tensor->ndim < 1 || tensor->ndim > NEQ_MAX_DIMS) {
    return fail(NEQ_UNSUPPORTED, "%s: expected 1 to %d dimensions, got %d; view it with fewer",
                name, NEQ_MAX_DIMS, tensor->ndim);
  }
  int64_t count = 1;
  int64_t last = 0;
  const int64_t element = element_bytes(tensor->dtype);
  for (int32_t d = 0; d < tensor->ndim; ++d) {
    const int64_t size = tensor->size[d];
    const int64_t stride = tensor->stride[d];
    if (size < 0 || stride < 0) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "%s: expected sizes and strides of at least 0, got size %lld and stride %lld in "
                  "dimension %d",
                  name, static_cast<long long>(size), static_cast<long long>(stride), d);
    }
    int64_t span = 0;
    int64_t bytes = 0;
    if (__builtin_mul_overflow(count, size, &count) ||
        __builtin_mul_overflow(count, element, &bytes) ||
        __builtin_mul_overflow(std::max<int64_t>(size - 1, 0), stride, &span) ||
        __builtin_add_overflow(last, span, &last) ||
        __builtin_mul_overflow(last, element, &bytes)) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "%s: expected offsets that fit 64 bits, dimension %d does "
                  "not",
                  name, d);
    }
  }
  if (count > 0 && !tensor->data) {
    return fail(NEQ_INVALID_ARGUMENT, "%s: expected data, got a null pointer", name);
  }
  return NEQ_OK;
}

neq_status check_pair(const neq_tensor& dy, int32_t dim, const neq_tensor& packed) noexcept {
  if (dim < 0 || dim >= dy.ndim) {
    return fail(NEQ_INVALID_ARGUMENT, "dim: expected 0 to %d, a dimension of dy, got %d",
                dy.ndim - 1, dim);
  }
  if (dy.size[dim] > INT32_MAX) {
    return fail(NEQ_UNSUPPORTED, "dy: expected at most %d channels, got %lld", INT32_MAX,
                static_cast<long long>(dy.size[dim]));
  }
  if (packed.dtype != dy.dtype || packed.ndim != dy.ndim) {
    return fail(NEQ_INVALID_ARGUMENT,
                "packed: expected dy's dtype %d and %d dimensions, got dtype %d and %d dimensions",
                static_cast<int>(dy.dtype), dy.ndim, static_cast<int>(packed.dtype), packed.ndim);
  }
  const bool empty =
      std::find(packed.size, packed.size + packed.ndim, 0) != packed.size + packed.ndim;
  for (int32_t d = 0; d < dy.ndim; ++d) {
    if (d != dim && packed.size[d] != dy.size[d]) {
      return fail(NEQ_INVALID_ARGUMENT, "packed: expected dy's size %lld in dimension %d, got %lld",
                  static_cast<long long>(dy.size[d]), d, static_cast<long long>(packed.size[d]));
    }
    if (!empty && packed.size[d] > 1 && packed.stride[d] == 0) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "packed: expected memory of its own for every element, got stride 0 in dimension "
                  "%d; allocate it in full",
                  d);
    }
  }
  return NEQ_OK;
}

// Fills in how many channels are active; the rest of `index` is padding.
neq_status check_index(const int32_t* index, int64_t width, int64_t channels,
                       int64_t* count) noexcept {
  if (width > 0 && !index) {
    return fail(NEQ_INVALID_ARGUMENT, "index: expected %lld channels, got a null pointer",
                static_cast<long long>(width));
  }
  int64_t active = 0;
  while (active < width && index[active] >= 0) ++active;
  for (int64_t i = 0; i < width; ++i) {
    const bool right =
        i >= active ? index[i] == -1 : index[i] < channels && (i == 0 || index[i] > index[i - 1]);
    if (!right) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "index: expected rising channels in [0, %lld), then only -1, got %d in place %lld"
                  "; sort it, once each",
                  static_cast<long long>(channels), index[i], static_cast<long long>(i));
    }
  }
  *count = active;
  return NEQ_OK;
}

// Sorts the dimensions other than the channels by the packed strides and merges what lies together.
int32_t collapse(const neq_tensor& dy, int32_t dim, const neq_tensor& packed, int64_t element,
                 Dim* dims) noexcept {
  int32_t found = 0;
  for (int32_t d = 0; d < dy.ndim; ++d) {
    if (d != dim && dy.size[d] != 1) {
      dims[found++] = {dy.size[d], dy.stride[d] * element, packed.stride[d] * element};
    }
  }
  std::sort(dims, dims + found, [](const Dim& a, const Dim& b) {
    return a.target != b.target ? a.target > b.target : a.source > b.source;
  });
  int32_t kept = 0;
  for (int32_t d = 0; d < found; ++d) {
    const Dim& inner = dims[d];
    Dim* outer = kept ? &dims[kept - 1] : nullptr;
    if (outer && outer->source == inner.source * inner.size &&
        outer->target == inner.target * inner.size) {
      *outer = {outer->size * inner.size, inner.source, inner.target};
    } else {
      dims[kept++] = inner;
    }
  }
  return kept;
}

void cut_into_blocks(Geometry* geometry) noexcept {
  int64_t positions = geometry->run_steps;
  for (int32_t d = 0; d < geometry->outer_dims; ++d) positions *= geometry->outer[d].size;
  geometry->positions = positions;
  const bool rows = geometry->walk == Walk::kRows;
  const int64_t read = rows ? geometry->channels : geometry->width;
  const int64_t bytes_each =
      read * geometry->element * std::min(geometry->run.size, geometry->run_step);
  const int64_t wanted = std::clamp<int64_t>(
      bytes_each ? positions / divide_up(kBlockBytes, bytes_each) : 0, 1, kMaxBlocks);
  geometry->blocks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(positions, 1));
  geometry->columns = 1;
  if (!rows && geometry->blocks < 8) {
    const int64_t bytes = positions * bytes_each;
    geometry->columns = std::clamp<int64_t>(bytes / geometry->blocks / kBlockBytes, 1,
                                            std::max<int64_t>(geometry->width, 1));
  }
}

Geometry understand(const neq_tensor& dy, int32_t dim, const neq_tensor& packed) noexcept {
  Geometry geometry{};
  geometry.dtype = dy.dtype;
  const int64_t element = geometry.element = element_bytes(dy.dtype);
  geometry.channels = dy.size[dim];
  geometry.width = packed.size[dim];
  geometry.channel = {dy.size[dim], dy.stride[dim] * element, packed.stride[dim] * element};
  geometry.outer_dims = collapse(dy, dim, packed, element, geometry.outer);
  geometry.run = {1, element, element};
  geometry.run_step = kMaxRun;

  const Dim* last = geometry.outer_dims ? &geometry.outer[geometry.outer_dims - 1] : nullptr;
  if (last && last->source == element && last->target == element) {
    geometry.walk = Walk::kPlanes;
  } else if (geometry.channel.source == element && geometry.channel.target == element) {
    geometry.walk = Walk::kRows;
  } else {
    geometry.walk = Walk::kStrided;
    geometry.run_step = kStridedRun;
  }
  if (last && geometry.walk != Walk::kRows) {
    geometry.run = *last;
    --geometry.outer_dims;
  }
  geometry.run_steps = divide_up(geometry.run.size, geometry.run_step);
  cut_into_blocks(&geometry);
  return geometry;
}

const Kernels& kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() == NEQ_ISA_AVX2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

// Cuts the active channels into groups, at most one per channel; none where they lie too far apart.
void plan_groups(const Kernels& kernels, int64_t channels, Group* groups, RowPlan* plan) noexcept {
  const int64_t lanes = kernels.lanes;
  if (lanes == 0 || channels < lanes) return;
  int64_t found = 0;
  for (int64_t i = 0; i < plan->count;) {
    const int64_t source = std::min<int64_t>(plan->index[i] / lanes * lanes, channels - lanes);
    const int64_t start = i;
    uint32_t active = 0;
    for (; i < plan->count && plan->index[i] < source + lanes; ++i) {
      active |= 1u << (plan->index[i] - source);
    }
    const uint32_t low = active & ((1u << lanes / 2) - 1);
    const int64_t middle = start + __builtin_popcount(low);
    groups[found++] = {static_cast<int32_t>(source), static_cast<int32_t>(start),
                       static_cast<int32_t>(middle), active};
    if (start + lanes <= plan->width) {
      plan->exact_groups = found;
      plan->tail = i;
    }
  }
  if (plan->count < kernels.sparse * found) {
    plan->exact_groups = plan->tail = 0;
    return;
  }
  plan->group_count = found;
}

struct Job {
  const Geometry& geometry;
  const Kernels& kernels;
  const char* source;
  char* target;
  RowPlan plan;
  double* partial;  // [blocks, padded(width)], null without a bias
};

// Inlined by force, here and below: a call that only prefetches looks like one without effect to a
// compiler, and is dropped.
[[gnu::always_inline]] inline void prefetch(const char* source, int64_t bytes) noexcept {
  for (int64_t at = 0; at < std::min(bytes, kPrefetchBytes); at += 64) {
    __builtin_prefetch(source + at);
  }
}

void pack_rows(const Job& job, int64_t block) noexcept {
  const Geometry& geometry = job.geometry;
  const int64_t begin = block_start(block, geometry.blocks, geometry.positions);
  const int64_t end = block_start(block + 1, geometry.blocks, geometry.positions);
  const int64_t row_bytes = std::max<int64_t>(geometry.width * geometry.element, 1);
  const int64_t chunk = std::clamp<int64_t>(kRowChunkBytes / row_bytes, 4, kMaxRows);
  char* targets[kMaxRows];
  const char* sources[kMaxRows];
  // In contiguous rows, spilling hits the next one, which this block writes later.
  const bool contiguous = geometry.outer_dims == 1 && geometry.outer[0].target == row_bytes;
  Position position(geometry, begin);
  for (int64_t row = begin; row < end; row += chunk) {
    const int64_t rows = std::min(chunk, end - row);
    for (int64_t r = 0; r < rows; ++r, position.advance()) {
      targets[r] = job.target + position.target();
      sources[r] = job.source + position.source();
    }
    const int64_t exact = !contiguous ? rows : row + rows == end ? 1 : 0;
    job.kernels.copy_rows(targets, sources, rows, exact, job.plan);
    // After copying, not before: the processor then streams on its own. Summing would let it idle.
    if (row + rows < end) prefetch(job.source + position.source(), kPrefetchBytes);
    if (!job.partial) continue;
    double* sums = job.partial + block * padded(geometry.width);
    job.kernels.add_rows(sums, targets, rows, exact, geometry.width);
  }
}

double copy_run(const Job& job, char* target, const char* source, int64_t n) noexcept {
  const Geometry& geometry = job.geometry;
  if (geometry.walk == Walk::kStrided) {
    const int64_t element = geometry.element;
    return job.kernels.copy_strided(target, geometry.run.target / element, source,
                                    geometry.run.source / element, n);
  }
  if (job.partial) return job.kernels.copy_run(target, source, n);
  std::memcpy(target, source, n * geometry.element);
  return 0;
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

// Frozen planes are skipped, a processor's own prefetching stops at every gap, and each plane may
// be another page: short planes are asked for in full a few ahead, and touched further ahead.
class PlanePrefetch {
 public:
  PlanePrefetch(const Job& job, int64_t first, int64_t last) noexcept
      : job_(job), first_(first), last_(std::min(last, job.plan.count)) {
    const int64_t bytes = std::min(job.geometry.run.size, kMaxRun) * job.geometry.element;
    near_bytes_ = bytes <= kPrefetchBytes ? bytes : 0;
    far_ = near_bytes_ ? 16 : 1;
  }

  [[gnu::always_inline]] void ahead_of(int64_t i, const char* here,
                                       const char* next) const noexcept {
    if (near_bytes_) prefetch(run(i + 4, here, next), near_bytes_);
    __builtin_prefetch(run(i + far_, here, next));
  }

 private:
  // Beyond the last channel come the first ones of the next position.
  const char* run(int64_t i, const char* here, const char* next) const noexcept {
    if (i >= last_) {
      i = first_ + i - last_;
      here = next;
    }
    return i < last_ ? here + job_.plan.index[i] * job_.geometry.channel.source : here;
  }

  const Job& job_;
  int64_t first_;
  int64_t last_;
  int64_t near_bytes_;
  int64_t far_;
};

void pack_runs(const Job& job, int64_t block, int64_t column) noexcept {
  const Geometry& geometry = job.geometry;
  const int64_t begin = block_start(block, geometry.blocks, geometry.positions);
  const int64_t end = block_start(block + 1, geometry.blocks, geometry.positions);
  const int64_t first = block_start(column, geometry.columns, geometry.width);
  const int64_t last = block_start(column + 1, geometry.columns, geometry.width);
  const bool planes = geometry.walk == Walk::kPlanes;
  const PlanePrefetch prefetch(job, first, last);
  double* sums = job.partial ? job.partial + block * padded(geometry.width) : nullptr;
  Start next = start_of(job, begin);
  for (int64_t at = begin; at < end; ++at) {
    const Start here = next;
    if (at + 1 < end) next = start_of(job, at + 1);
    const int64_t skipped = at % geometry.run_steps * geometry.run_step;
    const int64_t n = std::min(geometry.run_step, geometry.run.size - skipped);
    for (int64_t i = first; i < last; ++i) {
      char* target = here.target + i * geometry.channel.target;
      if (i >= job.plan.count) {
        zero_run(geometry, target, n);
        continue;
      }
      if (planes) prefetch.ahead_of(i, here.source, next.source);
      const char* source = here.source + job.plan.index[i] * geometry.channel.source;
      const double sum = copy_run(job, target, source, n);
      if (sums) sums[i] += sum;
    }
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
  const int64_t groups = geometry.walk == Walk::kRows ? geometry.width : 0;
  return partial_count(geometry, bias) * static_cast<int64_t>(sizeof(double)) +
         groups * static_cast<int64_t>(sizeof(Group));
}

neq_status check_scratch(neq_scratch scratch, int64_t bytes) noexcept {
  if (scratch.bytes < bytes || (bytes > 0 && !scratch.data)) {
    return fail(NEQ_INVALID_ARGUMENT, "scratch: expected %lld bytes, got %lld%s",
                static_cast<long long>(bytes), static_cast<long long>(scratch.bytes),
                scratch.data ? "" : " and a null pointer");
  }
  if (reinterpret_cast<uintptr_t>(scratch.data) % alignof(double) != 0) {
    return fail(NEQ_INVALID_ARGUMENT, "scratch: expected an address aligned to 8, got %p",
                scratch.data);
  }
  return NEQ_OK;
}

neq_status check(const neq_tensor* dy, int32_t dim, const neq_tensor* packed) noexcept {
  neq_status status = check_tensor("dy", dy);
  if (status == NEQ_OK) status = check_tensor("packed", packed);
  if (status == NEQ_OK) status = check_pair(*dy, dim, *packed);
  return status;
}

}  // namespace
}  // namespace neq::pack

int64_t neq_pack_channels_cpu_scratch(const neq_tensor* dy, int32_t dim, const neq_tensor* packed,
                                      const void* bias) {
  using namespace neq::pack;
  if (check(dy, dim, packed) != NEQ_OK) return -1;
  return scratch_bytes(understand(*dy, dim, *packed), bias != nullptr);
}

neq_status neq_pack_channels_cpu(const neq_tensor* dy, int32_t dim, const int32_t* index,
                                 const neq_tensor* packed, void* bias, neq_scratch scratch,
                                 const neq_parallel* parallel) {
  using namespace neq::pack;
  neq_status status = check(dy, dim, packed);
  if (status != NEQ_OK) return status;
  const Geometry geometry = understand(*dy, dim, *packed);
  int64_t count = 0;
  status = check_index(index, geometry.width, geometry.channels, &count);
  if (status == NEQ_OK) {
    status = check_scratch(scratch, scratch_bytes(geometry, bias != nullptr));
  }
  if (status != NEQ_OK) return status;

  const int64_t partials = partial_count(geometry, bias != nullptr);
  auto* partial = static_cast<double*>(scratch.data);
  auto* groups = reinterpret_cast<Group*>(partial + partials);
  std::fill_n(partial, partials, 0.0);
  const Kernels& loops = kernels(geometry.dtype);
  RowPlan plan = {index, groups, 0, 0, 0, count, geometry.width};
  if (geometry.walk == Walk::kRows) plan_groups(loops, geometry.channels, groups, &plan);
  Job job = {geometry,
             loops,
             static_cast<const char*>(dy->data),
             static_cast<char*>(packed->data),
             plan,
             bias ? partial : nullptr};
  const bool work = geometry.positions > 0 && geometry.width > 0;
  const int64_t tasks = work ? geometry.blocks * geometry.columns : 0;
  if (parallel && tasks > 1) {
    parallel->run(parallel->context, 0, tasks, 1, run_tasks, &job);
  } else {
    run_tasks(&job, 0, tasks);
  }
  if (bias) store_bias(geometry, partial, bias);
  return NEQ_OK;
}
