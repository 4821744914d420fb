// The portable loops of depthwise_wgrad.
#include "vectors_scalar.h"

#define NEQ_LOOP
#define NEQ_LOOP_INLINE [[gnu::always_inline]] inline
#include "depthwise_wgrad_lanes_loops.h"
#include "depthwise_wgrad_staged_loops.h"
#include "depthwise_wgrad_walk_loops.h"

namespace neq::depthwise {

const StagedKernels& scalar_staged(neq_dtype dtype) noexcept {
  return dtype == NEQ_F64 ? kStaged<Portable<double>> : kStaged<Portable<float>>;
}

const WalkKernels& scalar_walks(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kWalks<Elements<Double>>;
    case NEQ_F16:
      return kWalks<Elements<Half>>;
    case NEQ_BF16:
      return kWalks<Elements<BFloat16>>;
    case NEQ_F32:
      break;
  }
  return kWalks<Elements<Float>>;
}

const LanesKernels& scalar_lanes(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kLanes<Elements<Double>, 1>;
    case NEQ_F16:
      return kLanes<Elements<Half>, 1>;
    case NEQ_BF16:
      return kLanes<Elements<BFloat16>, 1>;
    case NEQ_F32:
      break;
  }
  return kLanes<Elements<Float>, 1>;
}

}  // namespace neq::depthwise
