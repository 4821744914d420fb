// The loop of conv_wgrad for AVX-512.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "vectors_avx512.h"

#define NEQ_LOOP NEQ_AVX512
#include "conv_wgrad_loops.h"

namespace neq::conv {

const Kernels& avx512_kernels(neq_dtype dtype) noexcept {
  return kernels_of<Floats, Doubles, 32, 6>(dtype);
}

}  // namespace neq::conv

#endif
