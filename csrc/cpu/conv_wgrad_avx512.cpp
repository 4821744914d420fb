// The loops of conv_wgrad for AVX-512.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "vectors_avx512.h"

#define NEQ_LOOP NEQ_AVX512
#define NEQ_LOOP_INLINE NEQ_AVX512_INLINE
#include "conv_wgrad_loops.h"

namespace neq::conv {

const Kernels& avx512_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Float64, 32, 6>;
    case NEQ_F16:
      return kKernels<Float16, 32, 6>;
    case NEQ_BF16:
      return kKernels<Brain16, 32, 6>;
    case NEQ_F32:
      break;
  }
  return kKernels<Float32, 32, 6>;
}

}  // namespace neq::conv

#endif
