#include "depthwise_wgrad_walk.h"
#include "depthwise_wgrad_lanes_walk.h"

#include <algorithm>

#include "tensor.h"

namespace neq::depthwise {

namespace {

// Most steps are 1 or 2, and a division takes as long as a dozen vectors.
int64_t steps_for(int64_t distance, int64_t step) noexcept {
  return step == 1 ? distance : step == 2 ? (distance + 1) / 2 : divide_up(distance, step);
}

}  // namespace

Meeting Meeting::of(const Axis& axis, int64_t output, int64_t tap, int64_t step) noexcept {
  const int64_t origin = output * axis.stride + tap * axis.dilation - axis.padding;
  const int64_t begin = origin < 0 ? steps_for(-origin, step) : 0;
  const int64_t first = origin + begin * step;
  if (first >= axis.in) return {begin, 0, 0};
  return {begin, steps_for(axis.in - first, step), first};
}

TapChunks TapChunks::of(const Axis& axis, int64_t most) noexcept {
  const int64_t chunks = divide_up(axis.kernel, most);
  return {axis.kernel, chunks};
}

Along Along::of(const Axis& axis) noexcept {
  const bool several = axis.kernel > 1 && axis.dilation == 1 && axis.stride <= 2;
  return {several ? kMaxAlong : 1, several ? 1 : axis.stride, several ? axis.stride : 1};
}

const WalkKernels& best_walks(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_walks(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_walks(dtype);
#endif
  return scalar_walks(dtype);
}

const LanesKernels& best_lanes(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_lanes(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_lanes(dtype);
#endif
  return scalar_lanes(dtype);
}

}  // namespace neq::depthwise
