// The loops of conv_wgrad for AVX2.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#define NEQ_LOOP_INLINE NEQ_AVX2_INLINE
#include "conv_wgrad_loops.h"

namespace neq::conv {

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Float64, 16, 4>;
    case NEQ_F16:
      return kKernels<Float16, 16, 4>;
    case NEQ_BF16:
      return kKernels<Brain16, 16, 4>;
    case NEQ_F32:
      break;
  }
  return kKernels<Float32, 16, 4>;
}

}  // namespace neq::conv

#endif
