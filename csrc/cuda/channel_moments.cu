// channel_moments: ab[c] = sum over m of a[m, c] * b[m, c],  aa[c] = sum of a[m, c]^2,
// bb[c] = sum of b[m, c]^2,  in one pass over both; with samples, of every sample on its own.
//
// All products and sums are fp64, as on the CPU. Each sample is cut into parts by the sizes alone;
// the first kernel sums every part, the second adds the parts in order. Nothing is atomic, so that
// every run gives the same bits.
//   add_rows      neighbouring elements are neighbouring channels ([tokens, C], channels_last): a
//                 thread has a few channels, the threads of a block share the rows of a part
//   add_runs      neighbouring elements belong to one channel (NCHW): a warp has one channel, its
//                 lanes walk the part's runs as if they were one
//   add_anything  any strides, and dtypes that differ: a warp has one channel, element by element
#include <algorithm>

#include "cpu/channel_moments_geometry.h"
#include "cuda/common.cuh"
#include "tensor.h"

namespace neq::cuda {
namespace {

using moments::Geometry;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// A block is worth starting for this many bytes, and more than this many blocks are not needed to
// fill any device: about three times what an H200 holds at once.
constexpr int64_t kPartBytes = 64 << 10;
constexpr int64_t kEnoughBlocks = 2048;
constexpr int64_t kMaxParts = 4096;

// The sums of a part, of three rows `distance` apart: in the scratch, or where they are wanted.
struct Target {
  double* data;
  int64_t distance;
  int64_t sample;  // from one sample's to the next
  int64_t part;

  __device__ double* of(int64_t at_sample, int64_t at_part) const {
    return data + at_sample * sample + at_part * part;
  }
};

struct Moments {
  double ab = 0;
  double aa = 0;
  double bb = 0;

  __device__ __forceinline__ void add(double a, double b) {
    ab = fma(a, b, ab);
    aa = fma(a, a, aa);
    bb = fma(b, b, bb);
  }
};

__device__ __forceinline__ int64_t part_start(int64_t part, int64_t parts, int64_t total) {
  const int64_t larger = total % parts;
  return total / parts * part + (part < larger ? part : larger);
}

// ---- Rows.

struct Rows {
  const char* a;
  const char* b;
  moments::Step sample;
  moments::Step row;
  int64_t channels;
  int64_t rows;
  int64_t parts;
  int64_t tiles;  // of channels
  int32_t lanes;  // threads side by side in a row, a power of two
};

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    add_rows(const __grid_constant__ Rows job, const __grid_constant__ Target target) {
  NEQ_SHARED(double, sums, [kThreads * kVector]);
  const int64_t tile = blockIdx.x % job.tiles;
  const int64_t part = blockIdx.x / job.tiles % job.parts;
  const int64_t sample = blockIdx.x / job.tiles / job.parts;
  const int lane = threadIdx.x % job.lanes;
  const int first = threadIdx.x / job.lanes;
  const int step = kThreads / job.lanes;
  const int64_t channel = (tile * job.lanes + lane) * kVector;
  const int64_t end = part_start(part + 1, job.parts, job.rows);
  const char* a = job.a + sample * job.sample.a + channel * int64_t{sizeof(T)};
  const char* b = job.b + sample * job.sample.b + channel * int64_t{sizeof(T)};
  Moments total[kVector];
  if (channel < job.channels) {
#pragma unroll 4
    for (int64_t r = part_start(part, job.parts, job.rows) + first; r < end; r += step) {
      const auto left = load_once<Vector<T, kVector>>(a + r * job.row.a);
      const auto right = load_once<Vector<T, kVector>>(b + r * job.row.b);
#pragma unroll
      for (int v = 0; v < kVector; ++v) total[v].add(to_sum(left.at[v]), to_sum(right.at[v]));
    }
  }
  // The rows' threads leave their sums side by side; those of the first row add them in order.
  double* out = target.of(sample, part);
  for (int kind = 0; kind < 3; ++kind) {
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const Moments& m = total[v];
      sums[v * kThreads + threadIdx.x] = kind == 0 ? m.ab : kind == 1 ? m.aa : m.bb;
    }
    __syncthreads();
    if (first == 0 && channel < job.channels) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        double sum = 0;
        for (int s = 0; s < step; ++s) sum += sums[v * kThreads + s * job.lanes + lane];
        out[kind * target.distance + channel + v] = sum;
      }
    }
  }
}

// ---- Runs, and whatever else.

struct Channels {
  const char* a;
  const char* b;
  moments::Step sample;
  moments::Step channel;
  int64_t channels;
  int64_t samples;
  int64_t elements;  // of a channel and a sample, in vectors
  int64_t parts;
};

// Which channel, sample and part this warp has; false where there is none left.
struct Place {
  int64_t channel;
  int64_t part;
  int64_t sample;

  __device__ static bool find(const Channels& job, Place* place) {
    const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
    *place = {warp % job.channels, warp / job.channels % job.parts,
              warp / job.channels / job.parts};
    return place->sample < job.samples;
  }
};

__device__ __forceinline__ void put(const Moments& total, const Place& place,
                                    const Target& target) {
  const double ab = warp_sum(total.ab);
  const double aa = warp_sum(total.aa);
  const double bb = warp_sum(total.bb);
  if (threadIdx.x % 32 != 0) return;
  double* out = target.of(place.sample, place.part) + place.channel;
  out[0] = ab;
  out[target.distance] = aa;
  out[2 * target.distance] = bb;
}

struct Runs {
  Channels all;
  moments::Step run;  // from one run of a channel to its next
  int64_t length;     // of a run, in vectors
};

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    add_runs(const __grid_constant__ Runs job, const __grid_constant__ Target target) {
  Place place;
  if (!Place::find(job.all, &place)) return;
  const int64_t begin = part_start(place.part, job.all.parts, job.all.elements);
  const int64_t end = part_start(place.part + 1, job.all.parts, job.all.elements);
  const char* a = job.all.a + place.sample * job.all.sample.a + place.channel * job.all.channel.a;
  const char* b = job.all.b + place.sample * job.all.sample.b + place.channel * job.all.channel.b;
  int64_t at = begin + threadIdx.x % 32;
  int64_t run = at / job.length;
  int64_t within = at % job.length;
  const int64_t runs_on = 32 / job.length;
  const int64_t within_on = 32 % job.length;
  Moments total;
#pragma unroll 4
  for (; at < end; at += 32) {
    const int64_t offset = within * int64_t{sizeof(Vector<T, kVector>)};
    const auto left = load_once<Vector<T, kVector>>(a + run * job.run.a + offset);
    const auto right = load_once<Vector<T, kVector>>(b + run * job.run.b + offset);
#pragma unroll
    for (int v = 0; v < kVector; ++v) total.add(to_sum(left.at[v]), to_sum(right.at[v]));
    run += runs_on;
    within += within_on;
    if (within >= job.length) {
      within -= job.length;
      ++run;
    }
  }
  put(total, place, target);
}

struct Anything {
  Channels all;
  int32_t a_dtype;
  int32_t b_dtype;
  int32_t dims;
  moments::Dim dim[NEQ_MAX_DIMS];  // that are summed, the innermost last
};

__device__ __forceinline__ double load_any(const char* address, int32_t dtype) {
  switch (dtype) {
    case NEQ_F64:
      return load<double>(address);
    case NEQ_F16:
      return to_sum(load<Vector<__half, 1>>(address).at[0]);
    case NEQ_BF16:
      return to_sum(load<Vector<__nv_bfloat16, 1>>(address).at[0]);
    default:
      return load<float>(address);
  }
}

__global__ void __launch_bounds__(kThreads)
    add_anything(const __grid_constant__ Anything job, const __grid_constant__ Target target) {
  Place place;
  if (!Place::find(job.all, &place)) return;
  const int64_t begin = part_start(place.part, job.all.parts, job.all.elements);
  const int64_t end = part_start(place.part + 1, job.all.parts, job.all.elements);
  const char* a = job.all.a + place.sample * job.all.sample.a + place.channel * job.all.channel.a;
  const char* b = job.all.b + place.sample * job.all.sample.b + place.channel * job.all.channel.b;
  Moments total;
  for (int64_t at = begin + threadIdx.x % 32; at < end; at += 32) {
    int64_t rest = at;
    int64_t left = 0;
    int64_t right = 0;
#pragma unroll
    for (int d = NEQ_MAX_DIMS - 1; d >= 0; --d) {
      if (d >= job.dims) continue;
      const int64_t here = rest % job.dim[d].size;
      rest /= job.dim[d].size;
      left += here * job.dim[d].step.a;
      right += here * job.dim[d].step.b;
    }
    total.add(load_any(a + left, job.a_dtype), load_any(b + right, job.b_dtype));
  }
  put(total, place, target);
}

// ---- The parts, in order.

__global__ void __launch_bounds__(kThreads)
    add_parts(double* moments, const double* partial, int64_t samples, int64_t parts,
              int64_t channels) {
  const int64_t row = samples * channels;
  for (int64_t i = global_thread(); i < 3 * row; i += global_threads()) {
    const int64_t kind = i / row;
    const int64_t sample = i % row / channels;
    const double* from = partial + (sample * parts * 3 + kind) * channels + i % channels;
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += from[part * 3 * channels];
    moments[i] = sum;
  }
}

// ---- Host.

enum class Walk { kRows, kRuns, kAnything };

// How a call is computed: by the sizes alone, so that the scratch is known without a device.
struct Plan {
  Geometry geometry;
  Walk walk;
  int64_t elements;  // of a channel and a sample
  int64_t vector;    // elements loaded at once
  int32_t lanes;     // rows: threads side by side
  int64_t tiles;     // rows: of channels
  int64_t parts;

  int64_t scratch() const {
    if (parts == 1) return 0;
    return geometry.sample.size * parts * 3 * geometry.channel.size *
           static_cast<int64_t>(sizeof(double));
  }
};

int64_t vector_of(const Plan& plan, const neq_tensor& a, const neq_tensor& b) {
  const Geometry& g = plan.geometry;
  const int64_t element = element_bytes(g.a);
  const bool rows = plan.walk == Walk::kRows;
  const int64_t along = (rows ? g.channel.size : g.inner.size) * element;
  uint64_t bits = reinterpret_cast<uintptr_t>(a.data) | reinterpret_cast<uintptr_t>(b.data);
  bits |= static_cast<uint64_t>(along | g.sample.step.a | g.sample.step.b);
  if (rows) {
    if (g.inner.size > 1) bits |= static_cast<uint64_t>(g.inner.step.a | g.inner.step.b);
  } else {
    bits |= static_cast<uint64_t>(g.channel.step.a | g.channel.step.b);
    if (g.outer_dims) bits |= static_cast<uint64_t>(g.outer[0].step.a | g.outer[0].step.b);
  }
  return common_alignment(bits) == 16 ? 16 / element : 1;
}

Plan plan_of(const neq_tensor& a, const neq_tensor& b, int32_t dim, bool per_sample) {
  Plan plan{};
  Geometry& g = plan.geometry = moments::understand(a, b, dim, per_sample);
  plan.elements = g.inner.size;
  for (int32_t d = 0; d < g.outer_dims; ++d) plan.elements *= g.outer[d].size;
  plan.walk = Walk::kAnything;
  if (g.a == g.b && g.walk == moments::Walk::kRows && g.outer_dims == 0) {
    plan.walk = Walk::kRows;
  } else if (g.a == g.b && g.walk == moments::Walk::kRuns && g.outer_dims <= 1) {
    plan.walk = Walk::kRuns;
  }
  plan.vector = plan.walk == Walk::kAnything ? 1 : vector_of(plan, a, b);
  const int64_t pair = element_bytes(g.a) + element_bytes(g.b);
  const int64_t channels = std::max<int64_t>(g.channel.size, 1);
  int64_t at_once = kWarps;  // channels of a block
  if (plan.walk == Walk::kRows) {
    const int64_t vectors = divide_up(channels, plan.vector);
    for (plan.lanes = 1; plan.lanes < 32 && plan.lanes < vectors;) plan.lanes *= 2;
    at_once = plan.lanes * plan.vector;
  }
  plan.tiles = divide_up(channels, at_once);
  const int64_t blocks = std::max<int64_t>(plan.tiles * g.sample.size, 1);
  const int64_t bytes = plan.elements * std::min(at_once, channels) * pair;  // of a block
  const int64_t wanted = std::min(bytes / kPartBytes, divide_up(kEnoughBlocks, blocks));
  plan.parts = std::clamp<int64_t>(wanted, 1, kMaxParts);
  return plan;
}

template <int kVector, class T>
neq_status launch_walk(const Plan& plan, const neq_tensor& a, const neq_tensor& b,
                       const Target& target, void* stream) {
  const Geometry& g = plan.geometry;
  const auto* left = static_cast<const char*>(a.data);
  const auto* right = static_cast<const char*>(b.data);
  if (plan.walk == Walk::kRows) {
    const Rows rows = {left,         right,      g.sample.step, g.inner.step, g.channel.size,
                       g.inner.size, plan.parts, plan.tiles,    plan.lanes};
    const int64_t blocks = plan.tiles * plan.parts * g.sample.size;
    if (blocks > INT32_MAX) return fail(NEQ_UNSUPPORTED, "a: too many samples; pass it in parts");
    return launch(add_rows<T, kVector>, {static_cast<unsigned>(blocks), kThreads}, stream, rows,
                  target);
  }
  const int64_t warps = g.channel.size * plan.parts * g.sample.size;
  const int64_t blocks = divide_up(warps, kWarps);
  if (blocks > INT32_MAX) return fail(NEQ_UNSUPPORTED, "a: too many samples; pass it in parts");
  const Grid grid = {static_cast<unsigned>(blocks), kThreads};
  const Channels all = {left,           right,         g.sample.step,           g.channel.step,
                        g.channel.size, g.sample.size, plan.elements / kVector, plan.parts};
  if (plan.walk == Walk::kRuns) {
    const moments::Step run = g.outer_dims ? g.outer[0].step : moments::Step{0, 0};
    const Runs runs = {all, run, std::max<int64_t>(g.inner.size / kVector, 1)};
    return launch(add_runs<T, kVector>, grid, stream, runs, target);
  }
  Anything anything = {all, g.a, g.b, g.outer_dims + 1, {}};
  for (int32_t d = 0; d < g.outer_dims; ++d) anything.dim[d] = g.outer[d];
  anything.dim[g.outer_dims] = g.inner;
  return launch(add_anything, grid, stream, anything, target);
}

neq_status launch_plan(const Plan& plan, const neq_tensor& a, const neq_tensor& b,
                       const Target& target, void* stream) {
  return with_element(plan.geometry.a, [&](auto element) {
    using T = decltype(element);
    constexpr int kWhole = 16 / sizeof(T);
    if (plan.vector == kWhole) return launch_walk<kWhole, T>(plan, a, b, target, stream);
    return launch_walk<1, T>(plan, a, b, target, stream);
  });
}

}  // namespace
}  // namespace neq::cuda

int64_t neq_channel_moments_cuda_scratch(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                                         int32_t per_sample) {
  if (neq::moments::check(a, b, dim, per_sample) != NEQ_OK) return -1;
  return neq::cuda::plan_of(*a, *b, dim, per_sample).scratch();
}

neq_status neq_channel_moments_cuda(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                                    int32_t per_sample, double* moments, neq_scratch scratch,
                                    void* stream) {
  using namespace neq::cuda;
  neq_status status = neq::moments::check(a, b, dim, per_sample);
  if (status != NEQ_OK) return status;
  const Plan plan = plan_of(*a, *b, dim, per_sample);
  status = neq::check_scratch(scratch, plan.scratch());
  if (status != NEQ_OK) return status;
  const int64_t samples = plan.geometry.sample.size;
  const int64_t channels = plan.geometry.channel.size;
  if (samples * channels == 0) return NEQ_OK;
  if (!moments) {
    return neq::fail(NEQ_INVALID_ARGUMENT, "moments: expected memory, got a null pointer");
  }
  auto* partial = static_cast<double*>(scratch.data);
  const int64_t parts = plan.parts;
  const Target direct = {moments, samples * channels, channels, 0};
  const Target apart = {partial, channels, parts * 3 * channels, 3 * channels};
  status = launch_plan(plan, *a, *b, parts == 1 ? direct : apart, stream);
  if (status != NEQ_OK || parts == 1) return status;
  const unsigned blocks = grid_for(3 * samples * channels, kThreads, kEnoughBlocks);
  return launch(add_parts, {blocks, kThreads}, stream, moments, partial, samples, parts, channels);
}
