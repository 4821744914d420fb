// channel_moments: ab[c] = sum over m of a[m, c] * b[m, c],  aa[c] = sum of a[m, c]^2,
// bb[c] = sum of b[m, c]^2,  in one pass over both; with samples, of every sample on its own.
//
// All dimensions but the channels and the samples collapse as far as both tensors' strides allow.
// The innermost is then walked by one of three loops (channel_moments.h), a piece at a time:
//   runs     neighbouring elements belong to one channel (NCHW)
//   rows     neighbouring elements are neighbouring channels (channels_last, [tokens, C])
//   strided  anything else (transposed, expanded, or each tensor its own way)
// The work is cut into blocks by the sizes alone; each block sums into rows of its own, and those
// are added in order. The number of threads therefore changes no bit.
#include "channel_moments.h"

#include <algorithm>
#include <cstdint>

#include "channel_moments_geometry.h"
#include "status.h"
#include "tensor.h"

namespace neq::moments {
namespace {

constexpr int64_t kGrainBytes = 64 << 10;

const Kernels& kernels(neq_dtype a, neq_dtype b) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() == NEQ_ISA_AVX512) return avx512_kernels(a, b);
  if (neq_cpu_isa() == NEQ_ISA_AVX2) return avx2_kernels(a, b);
#endif
  return scalar_kernels(a, b);
}

Add loop_of(const Geometry& geometry) noexcept {
  const Kernels& loops = kernels(geometry.a, geometry.b);
  switch (geometry.walk) {
    case Walk::kRows:
      return loops.rows;
    case Walk::kRuns:
      return loops.runs;
    case Walk::kStrided:
      break;
  }
  return loops.strided;
}

struct Job {
  const Geometry& geometry;
  Add add;
  const char* a;
  const char* b;
  double* moments;  // [3, samples, channels]
  double* partial;  // [samples, blocks, 3, width]; null where each block is a whole sample
};

// Counts through the outer dimensions, the last one fastest, and keeps where both tensors are.
class Place {
 public:
  Place(const Geometry& geometry, int64_t ordinal) noexcept : geometry_(geometry) {
    for (int32_t d = geometry.outer_dims - 1; d >= 0; --d) {
      const Dim& dim = geometry.outer[d];
      at_[d] = ordinal % dim.size;
      ordinal /= dim.size;
      offset_.a += at_[d] * dim.step.a;
      offset_.b += at_[d] * dim.step.b;
    }
  }

  void advance() noexcept {
    for (int32_t d = geometry_.outer_dims - 1; d >= 0; --d) {
      const Dim& dim = geometry_.outer[d];
      offset_.a += dim.step.a;
      offset_.b += dim.step.b;
      if (++at_[d] < dim.size) return;
      offset_.a -= dim.size * dim.step.a;
      offset_.b -= dim.size * dim.step.b;
      at_[d] = 0;
    }
  }

  Step offset() const noexcept { return offset_; }

 private:
  const Geometry& geometry_;
  int64_t at_[NEQ_MAX_DIMS] = {};
  Step offset_ = {0, 0};
};

Sums sums_of(const Job& job, int64_t sample, int64_t block) noexcept {
  const Geometry& geometry = job.geometry;
  if (job.partial) {
    const int64_t width = geometry.width();
    return {job.partial + (sample * geometry.blocks + block) * 3 * width, width};
  }
  const int64_t channels = geometry.channel.size;
  return {job.moments + sample * channels, geometry.sample.size * channels};
}

// What does not fill a folded row: the last rows of a sample, each for itself.
void add_last_rows(const Job& job, int64_t sample, Sums sums) noexcept {
  const Geometry& geometry = job.geometry;
  const Step step = geometry.inner.step;
  const int64_t folded = geometry.inner.size / geometry.fold * geometry.fold;
  if (folded == geometry.inner.size) return;
  int64_t positions = 1;
  for (int32_t d = 0; d < geometry.outer_dims; ++d) positions *= geometry.outer[d].size;
  if (positions == 0) return;
  Place place(geometry, 0);
  for (int64_t position = 0; position < positions; ++position, place.advance()) {
    const Step at = place.offset();
    job.add(sums,
            {job.a + sample * geometry.sample.step.a + at.a + folded * step.a,
             job.b + sample * geometry.sample.step.b + at.b + folded * step.b,
             geometry.channel.step, step, geometry.channel.size, geometry.inner.size - folded});
  }
}

void add_block(const Job& job, int64_t sample, int64_t block, int64_t column) noexcept {
  const Geometry& geometry = job.geometry;
  const int64_t begin = block_start(block, geometry.blocks, geometry.places);
  const int64_t end = block_start(block + 1, geometry.blocks, geometry.places);
  const int64_t first = block_start(column, geometry.columns, geometry.width());
  const int64_t last = block_start(column + 1, geometry.columns, geometry.width());
  Sums sums = sums_of(job, sample, block);
  sums.data += first;
  for (int64_t row = 0; row < 3; ++row) {
    std::fill_n(sums.data + row * sums.distance, last - first, 0.0);
  }
  if (begin == end) return;
  const int64_t length = geometry.inner.size / geometry.fold;
  const Step along = {geometry.inner.step.a * geometry.fold, geometry.inner.step.b * geometry.fold};
  const Step skipped = {sample * geometry.sample.step.a + first * geometry.channel.step.a,
                        sample * geometry.sample.step.b + first * geometry.channel.step.b};
  Place place(geometry, begin / geometry.pieces);
  int64_t from = begin % geometry.pieces * geometry.piece;
  for (int64_t at = begin; at < end; ++at) {
    const Step offset = place.offset();
    job.add(sums, {job.a + skipped.a + offset.a + from * along.a,
                   job.b + skipped.b + offset.b + from * along.b, geometry.channel.step, along,
                   last - first, std::min(geometry.piece, length - from)});
    from += geometry.piece;
    if (from < length) continue;
    from = 0;
    place.advance();
  }
}

void run_tasks(void* arg, int64_t begin, int64_t end) {
  const Job& job = *static_cast<const Job*>(arg);
  const int64_t blocks = job.geometry.blocks;
  const int64_t columns = job.geometry.columns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / (blocks * columns);
    const int64_t block = task / columns % blocks;
    add_block(job, sample, block, task % columns);
    if (job.geometry.fold > 1 && block == 0) add_last_rows(job, sample, sums_of(job, sample, 0));
  }
}

// Adds the blocks of a sample, in order, and the folded rows.
void gather(const Job& job, int64_t sample) noexcept {
  const Geometry& geometry = job.geometry;
  const int64_t channels = geometry.channel.size;
  double* moments = job.moments + sample * channels;
  for (int64_t row = 0; row < 3; ++row) {
    double* to = moments + row * geometry.sample.size * channels;
    std::fill_n(to, channels, 0.0);
    for (int64_t block = 0; block < geometry.blocks; ++block) {
      const Sums sums = sums_of(job, sample, block);
      const double* from = sums.data + row * sums.distance;
      for (int64_t f = 0; f < geometry.fold; ++f, from += channels) {
        for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
      }
    }
  }
}

int64_t scratch_bytes(const Geometry& geometry) noexcept {
  if (geometry.direct()) return 0;
  return geometry.sample.size * geometry.blocks * 3 * geometry.width() *
         static_cast<int64_t>(sizeof(double));
}

// Ranges that are worth waking a thread.
int64_t grain(const Geometry& geometry, int64_t tasks) noexcept {
  const int64_t pair = element_bytes(geometry.a) + element_bytes(geometry.b);
  int64_t bytes = geometry.sample.size * geometry.channel.size * geometry.inner.size * pair;
  for (int32_t d = 0; d < geometry.outer_dims; ++d) bytes *= geometry.outer[d].size;
  return divide_up(kGrainBytes, std::max<int64_t>(bytes / tasks, 1));
}

}  // namespace
}  // namespace neq::moments

int64_t neq_channel_moments_cpu_scratch(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                                        int32_t per_sample) {
  using namespace neq::moments;
  if (check(a, b, dim, per_sample) != NEQ_OK) return -1;
  return scratch_bytes(understand(*a, *b, dim, per_sample));
}

neq_status neq_channel_moments_cpu(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                                   int32_t per_sample, double* moments, neq_scratch scratch,
                                   const neq_parallel* parallel) {
  using namespace neq::moments;
  neq_status status = check(a, b, dim, per_sample);
  if (status != NEQ_OK) return status;
  const Geometry geometry = understand(*a, *b, dim, per_sample);
  status = neq::check_scratch(scratch, scratch_bytes(geometry));
  if (status != NEQ_OK) return status;
  const int64_t tasks =
      geometry.channel.size == 0 ? 0 : geometry.sample.size * geometry.blocks * geometry.columns;
  if (tasks == 0) return NEQ_OK;
  if (!moments) {
    return neq::fail(NEQ_INVALID_ARGUMENT, "moments: expected memory, got a null pointer");
  }

  Job job = {geometry,
             loop_of(geometry),
             static_cast<const char*>(a->data),
             static_cast<const char*>(b->data),
             moments,
             geometry.direct() ? nullptr : static_cast<double*>(scratch.data)};
  const int64_t step = grain(geometry, tasks);
  if (parallel && tasks > step) {
    parallel->run(parallel->context, 0, tasks, step, run_tasks, &job);
  } else {
    run_tasks(&job, 0, tasks);
  }
  if (job.partial) {
    for (int64_t sample = 0; sample < geometry.sample.size; ++sample) gather(job, sample);
  }
  return NEQ_OK;
}
