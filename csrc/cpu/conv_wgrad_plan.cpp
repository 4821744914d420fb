#include "conv_wgrad_plan.h"

#include "status.h"
#include "tensor.h"

namespace neq::conv {
namespace {

// Positions staged at a time, if a sample has no more: adding up the lanes of the sums takes little
// beside multiplying so many. Channels of x are then staged as far as a part of the second cache
// takes them.
constexpr int64_t kPositions = 1024;
constexpr int64_t kStagedBytes = 192 << 10;
// A task has at least this much work, unless there is but one: multiplications, and for each number
// of x as much as reading and staging it takes.
constexpr int64_t kTaskWork = 1 << 19;
constexpr int64_t kStagingWork = 8;
constexpr int64_t kMostTasks = 16;
constexpr int64_t kTaskChannels = 32;
// Fewer channels of x would leave lanes empty.
constexpr int64_t kFewestLanes = 8;
constexpr int64_t kLaneChannels = 64;
// Rows of a task, at least, that share one reading of x; and sums of all blocks, at most, unless
// there is but one block.
constexpr int64_t kTaskRows = 24;
constexpr int64_t kMostSums = 1 << 20;
constexpr int64_t kMost = 1 << 30;
// Numbers of dy staged for all tasks at once.
constexpr int64_t kMostShared = 1 << 24;

const Kernels& best_kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_kernels(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

neq_status unsupported() noexcept {
  return fail(NEQ_UNSUPPORTED,
              "window: expected strides and dilations that stage x in at most %d phases, and in "
              "tiles of less than 2^30 elements",
              static_cast<int>(kMostPhases));
}

// The largest power of two that is no larger: so many tasks are shared evenly.
int64_t power_of_two(int64_t n) noexcept {
  int64_t power = 1;
  while (power <= n / 2) power *= 2;
  return power;
}

int64_t tasks_for(const Call& call, double positions) noexcept {
  const Convolution& c = call.convolution;
  const double each = static_cast<double>(call.width) * c.taps() + kStagingWork;
  const double wanted = std::min<double>(positions * c.inputs * each / kTaskWork, kMostTasks);
  return power_of_two(static_cast<int64_t>(wanted));
}

neq_status plan_planes(Call* call) noexcept {
  const Convolution& c = call->convolution;
  call->run = run_planes;
  call->row_blocks = 1;
  for (int d = 0; d < 2; ++d) call->steps[d] = Steps::of(c.axis[d]);
  if (call->steps[0].phases > kMostPhases || call->steps[1].phases > kMostPhases ||
      call->phases() > kMostPhases || call->steps[0].pitch > kMost / call->steps[1].pitch) {
    return unsupported();
  }
  call->plane = call->steps[0].pitch * call->steps[1].pitch;
  call->samples = std::clamp<int64_t>(kPositions / call->plane, 1, c.batch);
  call->length = round_up(call->samples * call->plane, kStep);
  const int64_t beyond = call->steps[0].beyond * call->steps[1].pitch + call->steps[1].beyond;
  call->row = call->length + staging::kMaxLanes;
  call->column = round_up(call->length + beyond, kStep) + staging::kMaxLanes;
  const int64_t tasks = tasks_for(*call, static_cast<double>(call->plane) * c.batch);
  call->channel_blocks = std::min(power_of_two(c.inputs / kTaskChannels), tasks);
  const int64_t chunks = divide_up(c.batch, call->samples);
  call->blocks = std::clamp<int64_t>(tasks / call->channel_blocks, 1, chunks);
  const int64_t channel_bytes = call->column * call->phases() * call->scalar;
  const int64_t most = divide_up(c.inputs, call->channel_blocks);
  call->channels = std::clamp<int64_t>(kStagedBytes / channel_bytes, 1, std::max<int64_t>(most, 1));
  call->per_tap = 1;
  call->per_channel = c.taps();
  call->columns = c.inputs * c.taps() + kBiasColumns;
  if (call->channels > kMost / (call->column * call->phases()) || call->width > kMost / call->row ||
      call->columns > kMost) {
    return unsupported();
  }
  const int64_t columns = call->channels * call->phases() * call->column;
  call->chunks = divide_up(divide_up(c.batch, call->blocks), call->samples);
  const int64_t rows = call->width * call->row;
  const bool shared = call->channel_blocks > 1 &&
                      call->chunks <= kMostShared / std::max<int64_t>(rows, 1) / call->blocks;
  call->rows_staged = shared ? call->blocks * call->chunks * call->width : 0;
  call->tile_bytes = round_up((columns + (shared ? 0 : rows)) * call->scalar, kCacheLine);
  return NEQ_OK;
}

// Of a convolution that meets each pixel once, all outputs are one row, if strides say so too.
void join_rows(Convolution* c) noexcept {
  const auto together = [&](const Strides& s) {
    const int64_t row = c->axis[1].out * s.axis[1];
    return (c->axis[0].out == 1 || s.axis[0] == row) &&
           (c->batch == 1 || s.batch == c->axis[0].out * row);
  };
  for (const Axis& axis : c->axis) {
    if (axis.kernel != 1 || axis.stride != 1 || axis.padding != 0) return;
  }
  if (!together(c->x) || !together(c->dy)) return;
  c->axis[1].out *= c->batch * c->axis[0].out;
  c->axis[1].in = c->axis[1].out;
  c->axis[0].out = c->axis[0].in = c->batch = 1;
}

neq_status plan_lanes(Call* call) noexcept {
  Convolution& c = call->convolution;
  call->run = run_lanes;
  join_rows(&c);
  const int64_t out = c.axis[1].out;
  call->pieces_of_row = divide_up(out, kPieces);
  call->pieces = c.batch * c.axis[0].out * call->pieces_of_row;
  call->pieces_at_once = call->pieces_of_row > 1 ? 1 : std::min(kPieces / out, call->pieces);
  call->positions = call->pieces_at_once * divide_up(out, call->pieces_of_row);
  call->per_tap = round_up(c.inputs, staging::kMaxLanes);
  call->per_channel = 1;
  // The bias has a vector of its own, so that those of the next row are aligned.
  call->columns = c.taps() * call->per_tap + staging::kMaxLanes;
  if (call->columns > kMost || call->width > kMost / kPieces) return unsupported();
  const double all = static_cast<double>(c.batch) * c.axis[0].out * out;
  const int64_t tasks = tasks_for(*call, all);
  const int64_t most = std::max<int64_t>(kMostSums / (call->width * call->columns), 1);
  call->blocks = std::min({tasks, divide_up(call->pieces, call->pieces_at_once), most});
  call->row_blocks =
      std::clamp<int64_t>(tasks / call->blocks, 1, divide_up(call->width, kTaskRows));
  call->channel_blocks = std::clamp<int64_t>(tasks / (call->blocks * call->row_blocks), 1,
                                             divide_up(c.inputs, kLaneChannels));
  call->rows_staged = 0;
  const int64_t pixel = call->kernels->vectors * call->kernels->lanes;
  const int64_t rows = divide_up(call->width, call->row_blocks);
  const int64_t copied = call->positions * std::max(pixel, rows) * call->element;
  call->tile_bytes =
      round_up((call->positions * rows + staging::kMaxLanes) * call->scalar, kCacheLine) +
      round_up(copied, kCacheLine);
  return NEQ_OK;
}

}  // namespace

neq_status prepare(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Call* call) noexcept {
  Convolution& c = call->convolution;
  const neq_status status = understand(dy, x, width, window, dw, Groups::kOne, &c);
  if (status != NEQ_OK) return status;
  call->width = width;
  call->element = element_bytes(c.dtype);
  call->scalar = c.dtype == NEQ_F64 ? 8 : 4;
  if (c.empty() || width == 0) return NEQ_OK;
  call->kernels = &best_kernels(c.dtype);
  call->staging = &staging::best_kernels(c.dtype);
  return c.x.channel == 1 && c.inputs >= kFewestLanes ? plan_lanes(call) : plan_planes(call);
}

}  // namespace neq::conv
