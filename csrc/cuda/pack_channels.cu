// pack_channels: packed[m, i, k] = dy[m, index[i], k],  bias[i] = sum over m, k of packed[m, i, k],
// in one pass over dy.
//
// A block takes one part of the positions. What lies side by side in memory decides how:
//
// rows: channels (channels_last, [tokens, C]). A thread owns the channels of one 4-byte word of the
//   packed row and gathers them from 8 rows at once. Nothing is staged in shared memory: a warp
//   stores 128 bytes in a row; its loads fetch each 32-byte sector that holds an active channel
//   once, and no other.
// planes: positions of one channel (NCHW), at most 256 vectors of them. A thread owns one vector of
//   the plane and copies it from 4 or 8 planes at once.
// long runs: more vectors than that. A thread copies 4 or 8 of one plane at once.
//
// Vectors are 16 bytes where addresses and strides allow, else 4, else one element; the latter also
// where neighbours lie apart on either side.
//
// In flight per multiprocessor, with 1024 threads: 64 KiB in vectors of 16 bytes, 32 KiB in words
// of 4. An H200 needs about 4.3 TB/s * 0.8 us / 132 = 26 KiB to keep its memory busy; runs of
// single 16-bit elements (odd planes) have 16 KiB.
//
// Sums: fp32 over at most 32 values of one thread (fp64 for fp64), fp64 beyond; then over threads
// and parts in a fixed order. Parts depend on the sizes and on the device alone, so no result
// changes from run to run. Places of the index outside [0, channels) are padding: zeros.
#include "cuda/pack_channels.cuh"

namespace neq::cuda {
namespace {

constexpr int kResident = 4;  // blocks per multiprocessor, at least: 64 registers per thread
constexpr int kAddRows = 32;  // of partial sums, side by side

template <class V>
constexpr int kBatch = in_flight(sizeof(V));

__device__ __forceinline__ bool is_active(const Job& job, int64_t channel) {
  return channel >= 0 && channel < job.channels;
}

template <class T, int N>
__device__ __forceinline__ Sum<T> sum_of(const Vector<T, N>& vector) {
  Sum<T> sum = 0;
#pragma unroll
  for (int n = 0; n < N; ++n) sum += to_sum(vector.at[n]);
  return sum;
}

template <class T>
__device__ __forceinline__ void write_sum(const Job& job, int64_t i, double sum) {
  if (job.partial) {
    job.partial[blockIdx.y * job.width + i] = sum;
  } else {
    static_cast<T*>(job.bias)[i] = from_sum<T>(sum);
  }
}

// Copies one vector from each of the next kBatch positions and returns their sum. kFull: that many
// are left. Loads first, all of them in flight before the first store waits.
template <bool kFull, class T, int N, bool kFlat>
__device__ __forceinline__ Sum<T> copy_batch(char* target, const char* source, bool active,
                                             Steps<kFlat>* reads, Steps<kFlat>* writes) {
  using V = Vector<T, N>;
  V vectors[kBatch<V>];
#pragma unroll
  for (int b = 0; b < kBatch<V>; ++b, reads->advance()) {
    vectors[b] = V{};
    if (active && (kFull || reads->more(b))) vectors[b] = load<V>(source + reads->source());
  }
  Sum<T> sum = 0;
#pragma unroll
  for (int b = 0; b < kBatch<V>; ++b, writes->advance()) {
    if (kFull || reads->more(b)) store(target + writes->target(), vectors[b]);
    sum += sum_of(vectors[b]);
  }
  reads->pass(kBatch<V>);
  return sum;
}

// blockIdx.x is the place in the packed list, blockIdx.y the part. The threads stand run.size side
// by side, one vector of the plane each, and `down` planes deep.
template <class T, int N, bool kFlat>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_planes(const __grid_constant__ Job job, int down) {
  constexpr int kCount = kBatch<Vector<T, N>>;
  const int x = static_cast<int>(threadIdx.x) % static_cast<int>(job.run.size);
  const int y = static_cast<int>(threadIdx.x) / static_cast<int>(job.run.size);
  const int64_t channel = job.index[blockIdx.x];
  const bool active = is_active(job, channel);
  const char* const source =
      opaque(job.source + (active ? channel * job.channel.source : 0) + x * job.run.source);
  char* const target = opaque(job.target + blockIdx.x * job.channel.target + x * job.run.target);
  const int64_t first = part_start(job, blockIdx.y) + y;
  const int64_t end = y < down ? part_start(job, blockIdx.y + 1) : first;
  Steps<kFlat> reads(job.outer, first, end, down);
  Steps<kFlat> writes(job.outer, first, end, down);
  double total = 0;
#pragma unroll 1
  while (reads.more(kCount - 1)) {
    total += copy_batch<true, T, N>(target, source, active, &reads, &writes);
  }
  if (reads.more(0)) total += copy_batch<false, T, N>(target, source, active, &reads, &writes);
  if (!job.bias) return;
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) write_sum<T>(job, blockIdx.x, total);
}

// The same where a plane has more vectors than a block has threads: positions are its steps, each
// of kBatch vectors per thread.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_long_runs(const __grid_constant__ Job job) {
  using V = Vector<T, N>;
  constexpr int64_t kStep = int64_t{kThreads} * kBatch<V>;
  const int64_t channel = job.index[blockIdx.x];
  const bool active = is_active(job, channel);
  const char* const source = job.source + (active ? channel * job.channel.source : 0);
  char* const target = job.target + blockIdx.x * job.channel.target;
  const int64_t end = part_start(job, blockIdx.y + 1);
  const int64_t begin = part_start(job, blockIdx.y);
  int64_t plane = job.steps.divide(begin);
  int64_t k = (begin - plane * job.steps.value()) * kStep + threadIdx.x;
  Offsets at = offsets_of<false>(job.outer, plane);
  double total = 0;
#pragma unroll 1
  for (int64_t position = begin; position < end; ++position) {
    const char* from = source + at.source + k * job.run.source;
    char* to = target + at.target + k * job.run.target;
    V vectors[kBatch<V>];
#pragma unroll
    for (int b = 0; b < kBatch<V>; ++b, from += kThreads * job.run.source) {
      vectors[b] = V{};
      if (active && k + b * kThreads < job.run.size) vectors[b] = load<V>(from);
      from = opaque(from);
    }
    Sum<T> sum = 0;
#pragma unroll
    for (int b = 0; b < kBatch<V>; ++b, to += kThreads * job.run.target) {
      if (k + b * kThreads < job.run.size) store(to, vectors[b]);
      sum += sum_of(vectors[b]);
    }
    total += sum;
    k += kStep;
    if (k - threadIdx.x < job.run.size) continue;
    k = threadIdx.x;
    at = offsets_of<false>(job.outer, ++plane);
  }
  if (!job.bias) return;
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) write_sum<T>(job, blockIdx.x, total);
}

// What a thread gathers: neighbours in the packed row, each from a channel of its own. Padding is
// read from where its neighbour is and then made zero; nothing is read if all is padding.
template <class T, int kColumns>
struct Columns {
  const char* from[kColumns];
  bool keep[kColumns];
  bool any;
  double totals[kColumns];
};

// Gathers from the next kRows rows. kFull: that many are left.
template <bool kFull, class T, int kColumns, bool kFlat>
__device__ __forceinline__ void gather_batch(char* target, Columns<T, kColumns>* columns,
                                             Steps<kFlat>* reads, Steps<kFlat>* writes) {
  using V = Vector<T, kColumns>;
  V words[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r, reads->advance()) {
    words[r] = V{};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (!columns->any || !(kFull || reads->more(r))) continue;
      words[r].at[c] = load<T>(columns->from[c] + reads->source());
    }
  }
  Sum<T> sums[kColumns] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r, writes->advance()) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (!columns->keep[c]) words[r].at[c] = T{};
      sums[c] += to_sum(words[r].at[c]);
    }
    if (kFull || reads->more(r)) store(target + writes->target(), words[r]);
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) columns->totals[c] += sums[c];
  reads->pass(kRows);
}

// The threads stand `across` side by side along the packed row, each with kColumns channels, and
// `down` rows deep; blockIdx.x is the piece of the row, blockIdx.y the part.
template <class T, int kColumns, bool kFlat>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_rows(const __grid_constant__ Job job, int across, int down) {
  const int x = static_cast<int>(threadIdx.x) % across;
  const int y = static_cast<int>(threadIdx.x) / across;
  const int64_t i = (int64_t{blockIdx.x} * across + x) * kColumns;
  const bool works = y < down && i < job.width;
  Columns<T, kColumns> columns = {};
  int64_t neighbour = 0;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int64_t channel = works ? job.index[i + c] : -1;
    columns.keep[c] = is_active(job, channel);
    columns.any |= columns.keep[c];
    if (columns.keep[c]) neighbour = channel;
    columns.from[c] = job.source + neighbour * job.channel.source;
  }
  if (!columns.keep[0]) columns.from[0] = columns.from[kColumns - 1];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) columns.from[c] = opaque(columns.from[c]);
  char* const target = opaque(job.target + i * job.channel.target);
  const int64_t first = part_start(job, blockIdx.y) + y;
  const int64_t end = works ? part_start(job, blockIdx.y + 1) : first;
  Steps<kFlat> reads(job.outer, first, end, down);
  Steps<kFlat> writes(job.outer, first, end, down);
#pragma unroll 1
  while (reads.more(kRows - 1)) gather_batch<true>(target, &columns, &reads, &writes);
  if (reads.more(0)) gather_batch<false>(target, &columns, &reads, &writes);
  if (!job.bias) return;
  NEQ_SHARED(double, threads, [kThreads * kColumns]);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) threads[c * kThreads + threadIdx.x] = columns.totals[c];
  __syncthreads();
  if (y > 0 || !works) return;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    double sum = 0;
    for (int k = 0; k < down; ++k) sum += threads[c * kThreads + k * across + x];
    write_sum<T>(job, i + c, sum);
  }
}

// bias[i] = sum over parts of partial[part, i]: 32 columns per block, kAddRows parts at a time.
template <class T>
__global__ void __launch_bounds__(32 * kAddRows) add_parts(const __grid_constant__ Job job) {
  NEQ_SHARED(double, sums, [kAddRows][32]);
  const int x = threadIdx.x % 32;
  const int y = threadIdx.x / 32;
  const int64_t i = int64_t{blockIdx.x} * 32 + x;
  double sum = 0;
  if (i < job.width) {
#pragma unroll 4
    for (int64_t part = y; part < job.parts; part += kAddRows) {
      sum += job.partial[part * job.width + i];
    }
  }
  sums[y][x] = sum;
  __syncthreads();
  if (y > 0 || i >= job.width) return;
  sum = 0;
#pragma unroll
  for (int k = 0; k < kAddRows; ++k) sum += sums[k][x];
  static_cast<T*>(job.bias)[i] = from_sum<T>(sum);
}

// ---- The launcher.

template <class T, int kColumns>
neq_status launch_rows(const Plan& plan, const Grid& grid, void* stream) {
  const Job& job = plan.job;
  if constexpr (kColumns == 1) {
    if (job.outer.count > 1) {
      return launch(pack_rows<T, 1, false>, grid, stream, job, plan.across, plan.down);
    }
  }
  return launch(pack_rows<T, kColumns, true>, grid, stream, job, plan.across, plan.down);
}

template <class T, int N>
neq_status launch_runs(const Plan& plan, const Grid& grid, void* stream) {
  const Job& job = plan.job;
  if (plan.walk == Walk::kLongRuns) return launch(pack_long_runs<T, N>, grid, stream, job);
  if constexpr (N == 1) {
    if (job.outer.count > 1) return launch(pack_planes<T, 1, false>, grid, stream, job, plan.down);
  }
  return launch(pack_planes<T, N, true>, grid, stream, job, plan.down);
}

template <class T>
neq_status launch_all(const Plan& plan, void* stream) {
  constexpr int kWide = 16 / sizeof(T);
  constexpr int kWord = sizeof(T) == 2 ? 2 : 1;
  const Job& job = plan.job;
  const Grid grid = {dim3(static_cast<unsigned>(plan.pieces), static_cast<unsigned>(job.parts)),
                     kThreads};
  neq_status status = NEQ_OK;
  if (plan.walk == Walk::kRows) {
    status = plan.elements == kWord ? launch_rows<T, kWord>(plan, grid, stream)
                                    : launch_rows<T, 1>(plan, grid, stream);
  } else if (plan.elements == kWide) {
    status = launch_runs<T, kWide>(plan, grid, stream);
  } else {
    status = plan.elements == kWord ? launch_runs<T, kWord>(plan, grid, stream)
                                    : launch_runs<T, 1>(plan, grid, stream);
  }
  if (status != NEQ_OK || !job.partial) return status;
  const Grid columns = {grid_for(job.width, 32, INT32_MAX), 32 * kAddRows};
  return launch(add_parts<T>, columns, stream, job);
}

}  // namespace
}  // namespace neq::cuda

int64_t neq_pack_channels_cuda_scratch(const neq_tensor* dy, int32_t dim, const neq_tensor* packed,
                                       const void* bias) {
  neq::cuda::Plan plan;
  if (neq::cuda::plan_of(dy, dim, packed, bias, &plan) != NEQ_OK) return -1;
  return neq::cuda::scratch_bytes(plan);
}

neq_status neq_pack_channels_cuda(const neq_tensor* dy, int32_t dim, const int32_t* index,
                                  const neq_tensor* packed, void* bias, neq_scratch scratch,
                                  void* stream) {
  using namespace neq::cuda;
  Plan plan;
  if (const neq_status status = plan_of(dy, dim, packed, bias, &plan)) return status;
  if (plan.job.width == 0) return NEQ_OK;
  if (!index) {
    return neq::fail(NEQ_INVALID_ARGUMENT, "index: expected %lld channels, got a null pointer",
                     static_cast<long long>(plan.job.width));
  }
  const int64_t bytes = scratch_bytes(plan);
  if (const neq_status status = neq::check_scratch(scratch, bytes)) return status;
  plan.job.index = index;
  if (bytes > 0) plan.job.partial = static_cast<double*>(scratch.data);
  if (plan.job.positions == 0 && !bias) return NEQ_OK;
  return with_element(dy->dtype,
                      [&](auto element) { return launch_all<decltype(element)>(plan, stream); });
}
