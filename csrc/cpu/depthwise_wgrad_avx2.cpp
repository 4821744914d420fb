// The loops of depthwise_wgrad for AVX2.
#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#define NEQ_LOOP_INLINE NEQ_AVX2_INLINE
#include "depthwise_wgrad_lanes_loops.h"
#include "depthwise_wgrad_staged_loops.h"
#include "depthwise_wgrad_walk_loops.h"

namespace neq::depthwise {

const StagedKernels& avx2_staged(neq_dtype dtype) noexcept {
  return dtype == NEQ_F64 ? kStaged<Doubles> : kStaged<Floats>;
}

const WalkKernels& avx2_walks(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kWalks<Float64>;
    case NEQ_F16:
      return kWalks<Float16>;
    case NEQ_BF16:
      return kWalks<Brain16>;
    case NEQ_F32:
      break;
  }
  return kWalks<Float32>;
}

const LanesKernels& avx2_lanes(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kLanes<Float64, 1>;
    case NEQ_F16:
      return kLanes<Float16, 1>;
    case NEQ_BF16:
      return kLanes<Brain16, 1>;
    case NEQ_F32:
      break;
  }
  return kLanes<Float32, 1>;
}

}  // namespace neq::depthwise

#endif
