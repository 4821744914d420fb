#include "conv_wgrad_plan.h"

#include "status.h"
#include "tensor.h"

namespace neq::conv {
namespace {

// Positions staged at a time, if a sample has no more: adding up the lanes of the sums takes little
// beside multiplying so many. Channels of x are then staged as far as a part of the second cache
// takes them.
constexpr int64_t kPositions = 2048;
constexpr int64_t kStagedBytes = 192 << 10;
// A task has at least this many multiplications, unless there is but one.
constexpr int64_t kTaskWork = 1 << 20;
constexpr int64_t kMostTasks = 16;
constexpr int64_t kTaskChannels = 32;

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

void cut_into_tasks(Call* call) noexcept {
  const Convolution& c = call->convolution;
  const int64_t chunks = divide_up(c.batch, call->samples);
  const double work = static_cast<double>(call->plane) * c.batch * call->width * c.inputs *
                      static_cast<double>(c.taps());
  const auto wanted = static_cast<int64_t>(std::min<double>(work / kTaskWork, kMostTasks));
  const int64_t tasks = std::max<int64_t>(wanted, 1);
  call->channel_blocks = std::clamp<int64_t>(c.inputs / kTaskChannels, 1, tasks);
  call->sample_blocks = std::clamp<int64_t>(tasks / call->channel_blocks, 1, chunks);
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
  for (int d = 0; d < 2; ++d) call->steps[d] = Steps::of(c.axis[d]);
  constexpr int64_t kMost = 1 << 30;
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
  const int64_t channel_bytes = call->column * call->phases() * call->scalar;
  cut_into_tasks(call);
  const int64_t most = divide_up(c.inputs, call->channel_blocks);
  call->channels = std::clamp<int64_t>(kStagedBytes / channel_bytes, 1, std::max<int64_t>(most, 1));
  call->columns = c.inputs * c.taps() + 1;
  if (call->channels > kMost / (call->column * call->phases()) || width > kMost / call->row ||
      call->columns > kMost) {
    return unsupported();
  }
  call->tile_bytes =
      round_up((width * call->row + call->channels * call->phases() * call->column) * call->scalar,
               kCacheLine);
  return NEQ_OK;
}

}  // namespace neq::conv
