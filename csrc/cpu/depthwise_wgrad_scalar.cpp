// The portable loop of depthwise_wgrad.
#include "vectors_scalar.h"

#define NEQ_LOOP
#include "depthwise_wgrad_loops.h"

namespace neq::depthwise {

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  return dtype == NEQ_F64 ? kKernels<Portable<double>> : kKernels<Portable<float>>;
}

}  // namespace neq::depthwise
