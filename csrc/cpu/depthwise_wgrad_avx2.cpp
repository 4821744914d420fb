// The loop of depthwise_wgrad for AVX2.
#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#include "depthwise_wgrad_loops.h"

namespace neq::depthwise {

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  return dtype == NEQ_F64 ? kKernels<Doubles> : kKernels<Floats>;
}

}  // namespace neq::depthwise

#endif
