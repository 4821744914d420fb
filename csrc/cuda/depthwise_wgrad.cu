// depthwise_wgrad: dw[o, r, s] = sum over n, p, q of dy[n, o, p, q] * x[n, o / multiplier, i, j],
//   i = p * stride + r * dilation - padding, likewise j, and db[o] = sum of dy[n, o, p, q],
// for the active channels alone; all other rows become zero.
//
// Two launches. add_products: a thread has one active channel, walks over positions and sums the
// products for a tile of the window's taps, 3x3 or 1x4, in registers: dy is loaded once per tile,
// x once per tap, of which the cache serves all but the first. Larger windows take several tiles,
// in blocks of their own. The threads of a block stand side by side along whatever is contiguous:
//   planes (NCHW)          columns of one channel's row, then its rows
//   lanes (channels_last)  32 channels of the list, then columns, then rows
//   one of each            8 channels, then columns
// so that warps load sectors whole where the active channels allow. There are too few channels to
// fill a GPU: positions are cut into parts, whose sums lie in the scratch.
// store_rows: a warp adds the parts of one weight and writes it, or its zero, so that every element
// of dw and db is written once.
//
// Sums: fp32 over at most 32 positions of one thread (fp64 for fp64), fp64 beyond; then over
// threads and parts in a fixed order. Parts depend on the sizes, strides and the device alone, so
// no result changes from run to run. Places of the index outside [0, outputs) are padding.
#include "cuda/depthwise_wgrad.cuh"

namespace neq::depthwise {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kResident = 2;  // blocks per multiprocessor, at least: 128 registers per thread
constexpr int kBatch = 2;     // positions a thread has in flight
constexpr int kRun = 32;      // positions summed in fp32

// Of the element at `offset`, which may be any where there is none to read.
template <class T>
__device__ __forceinline__ Sum<T> read(const char* base, int64_t offset, bool there) {
  return there ? to_sum(load<T>(base + offset * int64_t{sizeof(T)})) : Sum<T>{0};
}

__device__ __forceinline__ bool inside(int64_t i, int64_t size) {
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(size);
}

// Walks over lines without dividing.
struct Line {
  int64_t n;
  int64_t p;

  __device__ Line(const Job& job, int64_t line) : n(job.rows.divide(line)) {
    p = line - n * job.rows.value();
  }
  __device__ void advance(const Job& job) {
    n += job.down_samples;
    p += job.down_rows;
    if (p < job.rows.value()) return;
    p -= job.rows.value();
    ++n;
  }
};

// What one position adds to a tile of taps.
template <class T, int kTall, int kWide>
struct Operands {
  Sum<T> dy;
  Sum<T> x[kTall][kWide];
};

// One thread's column of a channel, and where the window's taps of a tile meet x there.
template <class T, int kTall, int kWide>
struct Column {
  const char* dy;
  const char* x;
  int64_t at[kWide];  // elements; -1: no such tap or input
  int64_t row;        // the tile's first tap

  __device__ void move(const Convolution& c, int64_t q, int64_t first_tap) {
    const Axis& axis = c.axis[1];
#pragma unroll
    for (int s = 0; s < kWide; ++s) {
      at[s] = -1;
      if (first_tap + s >= axis.kernel) continue;
      const int64_t j = q * axis.stride + (first_tap + s) * axis.dilation - axis.padding;
      if (inside(j, axis.in)) at[s] = j * c.x.axis[1];
    }
  }

  __device__ Operands<T, kTall, kWide> operands(const Convolution& c, const Line& line,
                                                bool there) const {
    const Axis& axis = c.axis[0];
    Operands<T, kTall, kWide> result;
    result.dy = read<T>(dy, line.n * c.dy.batch + line.p * c.dy.axis[0], there);
#pragma unroll
    for (int r = 0; r < kTall; ++r) {
      int64_t i = -1;
      if (row + r < axis.kernel) {
        i = line.p * axis.stride + (row + r) * axis.dilation - axis.padding;
      }
      const bool meets = there && inside(i, axis.in);
      const int64_t from = meets ? line.n * c.x.batch + i * c.x.axis[0] : 0;
#pragma unroll
      for (int s = 0; s < kWide; ++s) {
        result.x[r][s] = read<T>(x, from + at[s], meets && at[s] >= 0);
      }
    }
    return result;
  }
};

// Sums of a tile of taps and of dy: short ones, and what they have been added to.
template <class T, int kTall, int kWide>
struct Sums {
  static constexpr int kCount = kTall * kWide + 1;
  static constexpr bool kShort = !std::is_same_v<Sum<T>, double>;
  Sum<T> run[kCount];
  double total[kCount];
  int length;

  __device__ Sums() : run{}, total{}, length(0) {}

  __device__ void add(const Operands<T, kTall, kWide>& operands) {
#pragma unroll
    for (int t = 0; t < kCount - 1; ++t) run[t] += operands.dy * operands.x[t / kWide][t % kWide];
    run[kCount - 1] += operands.dy;
  }

  __device__ void fold() {
    length = 0;
    if constexpr (kShort) {
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        total[t] += run[t];
        run[t] = 0;
      }
    }
  }

  __device__ const double* totals() const {
    if constexpr (kShort) {
      return total;
    } else {
      return run;
    }
  }
};

// Over the block's threads of one channel each; writes job.partial.
template <int kTall, int kWide>
__device__ __forceinline__ void write_partial(const Job& job, const double* totals, int64_t piece,
                                              int64_t first_row, int64_t first_column) {
  constexpr int kCount = kTall * kWide + 1;
  NEQ_SHARED(double, warps, [kWarps][kCount][32]);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    double sum = totals[t];
    for (int apart = 16; apart >= job.lanes; apart /= 2) {
      sum += __shfl_xor_sync(kWholeWarp, sum, apart);
    }
    if (lane < job.lanes) warps[threadIdx.x / 32][t][lane] = sum;
  }
  __syncthreads();
  const Convolution& c = job.convolution;
  for (int at = threadIdx.x; at < kCount * 32; at += kThreads) {
    const int t = at / 32;
    const int64_t place = piece * job.lanes + at % 32;
    if (at % 32 >= job.lanes || place >= job.width) continue;
    int64_t slot = job.slots.value() - 1;
    if (t < kCount - 1) {
      const int64_t row = first_row + t / kWide;
      const int64_t column = first_column + t % kWide;
      if (row >= c.axis[0].kernel || column >= c.axis[1].kernel) continue;
      slot = row * c.axis[1].kernel + column;
    } else if (first_row > 0 || first_column > 0) {
      continue;
    }
    double sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += warps[warp][t][at % 32];
    job.partial[(place * job.slots.value() + slot) * job.parts + blockIdx.y] = sum;
  }
}

// blockIdx.x is the piece of the list and, faster, the tile of taps; blockIdx.y the part.
template <class T, int kTall, int kWide>
__global__ void __launch_bounds__(kThreads, kResident)
    add_products(const __grid_constant__ Job job) {
  const Convolution& c = job.convolution;
  const int64_t piece = job.tiles.divide(blockIdx.x);
  const int64_t tile = blockIdx.x - piece * job.tiles.value();
  const int64_t tile_row = job.tiles_wide.divide(tile);
  const int64_t first_column = (tile - tile_row * job.tiles_wide.value()) * kWide;

  const int lane = static_cast<int>(threadIdx.x) & (job.lanes - 1);
  const int line_of_lanes = static_cast<int>(threadIdx.x) / job.lanes;
  const int across = line_of_lanes % job.across;
  const int down = line_of_lanes / job.across;
  const int64_t place = piece * job.lanes + lane;
  const int32_t channel = place < job.width ? job.index[place] : -1;
  const bool active = inside(channel, c.outputs) && down < job.down;

  const int64_t lines_part = job.column_parts.divide(blockIdx.y);
  const int64_t columns_part = blockIdx.y - lines_part * job.columns.parts;
  const int64_t first_line = job.lines.start(lines_part) + down;
  const int64_t end_line = active ? job.lines.start(lines_part + 1) : first_line;
  const int64_t end_column = active ? job.columns.start(columns_part + 1) : 0;

  Column<T, kTall, kWide> column;
  column.row = tile_row * kTall;
  const int32_t input = active ? channel / static_cast<int32_t>(c.multiplier) : 0;
  column.x = job.x + input * c.x.channel * int64_t{sizeof(T)};
  Sums<T, kTall, kWide> sums;
#pragma unroll 1
  for (int64_t q = job.columns.start(columns_part) + across; q < end_column; q += job.across) {
    column.dy = job.dy + (channel * c.dy.channel + q * c.dy.axis[1]) * int64_t{sizeof(T)};
    column.move(c, q, first_column);
    Line line(job, first_line);
#pragma unroll 1
    for (int64_t at = first_line; at < end_line; at += int64_t{kBatch} * job.down) {
      Operands<T, kTall, kWide> batch[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b, line.advance(job)) {
        batch[b] = column.operands(c, line, at + b * job.down < end_line);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) sums.add(batch[b]);
      sums.length += kBatch;
      if (sums.length == kRun) sums.fold();
    }
  }
  sums.fold();
  write_partial<kTall, kWide>(job, sums.totals(), piece, column.row, first_column);
}

// The place of `channel` in the list, which rises, with what is no channel at its end; else -1.
__device__ __forceinline__ int64_t find(const Job& job, int64_t channel) {
  int64_t low = 0;
  int64_t high = job.width;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int64_t there = job.index[middle];
    if (inside(there, channel)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < job.width && job.index[low] == channel ? low : -1;
}

// A warp per weight, and per element of db.
template <class T>
__global__ void __launch_bounds__(kThreads) store_rows(const __grid_constant__ Job job) {
  const Convolution& c = job.convolution;
  const int64_t slots = job.slots.value();
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int64_t at = global_thread() / 32; at < c.outputs * slots; at += global_threads() / 32) {
    const int64_t channel = job.slots.divide(at);
    const auto slot = static_cast<uint32_t>(at - channel * slots);
    const int64_t place = job.parts > 0 ? find(job, channel) : -1;
    double sum = 0;
    if (place >= 0) {
      const double* const partial = job.partial + (place * slots + slot) * job.parts;
      for (int64_t part = lane; part < job.parts; part += 32) sum += partial[part];
    }
    sum = warp_sum(sum);
    if (lane > 0) continue;
    const auto wide = static_cast<uint32_t>(c.axis[1].kernel);
    int64_t offset = channel * c.dw.batch + slot / wide * c.dw.axis[0] + slot % wide * c.dw.axis[1];
    char* target = job.dw;
    if (slot == slots - 1) {
      offset = channel;
      target = job.db;
    }
    if (target) store(target + offset * int64_t{sizeof(T)}, from_sum<T>(sum));
  }
}

// ---- The launcher.

template <class T>
neq_status launch_all(const Plan& plan, const Device& device, void* stream) {
  const Job& job = plan.job;
  const Grid grid = {dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(job.parts)),
                     kThreads};
  const neq_status status = plan.tall ? launch(add_products<T, 3, 3>, grid, stream, job)
                                      : launch(add_products<T, 1, 4>, grid, stream, job);
  if (status != NEQ_OK) return status;
  const int64_t most =
      int64_t{device.multiprocessors} * (device.threads_per_multiprocessor / kThreads);
  const int64_t weights = job.convolution.outputs * job.slots.value();
  return launch(store_rows<T>, {grid_for(weights, kWarps, 4 * most), kThreads}, stream, job);
}

}  // namespace
}  // namespace neq::depthwise

int64_t neq_depthwise_wgrad_cuda_scratch(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                                         const neq_window* window, const neq_tensor* dw) {
  using namespace neq::depthwise;
  Plan plan;
  if (plan_of(dy, x, width, window, dw, &plan) != NEQ_OK) return -1;
  return scratch_bytes(plan.job);
}

neq_status neq_depthwise_wgrad_cuda(const neq_tensor* dy, const neq_tensor* x, const int32_t* index,
                                    int64_t width, const neq_window* window, const neq_tensor* dw,
                                    void* db, neq_scratch scratch, void* stream) {
  using namespace neq::depthwise;
  Plan plan;
  neq_status status = plan_of(dy, x, width, window, dw, &plan);
  if (status == NEQ_OK) status = check_alignment("db", db, dy->dtype);
  if (status != NEQ_OK) return status;
  if (!index && width > 0) {
    return neq::fail(NEQ_INVALID_ARGUMENT, "index: expected %lld channels, got a null pointer",
                     static_cast<long long>(width));
  }
  status = neq::check_scratch(scratch, scratch_bytes(plan.job));
  neq::cuda::Device device;
  if (status == NEQ_OK) status = neq::cuda::current_device(&device);
  if (status != NEQ_OK) return status;
  plan.job.index = index;
  plan.job.db = static_cast<char*>(db);
  plan.job.partial = static_cast<double*>(scratch.data);
  return neq::cuda::with_element(
      dy->dtype, [&](auto element) { return launch_all<decltype(element)>(plan, device, stream); });
}
