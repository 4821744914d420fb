// The loop of conv_wgrad for AVX2.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#include "conv_wgrad_loops.h"

namespace neq::conv {

// Of 16 registers, 12 for sums.
const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  return kernels_of<Floats, Doubles>(dtype, 4);
}

}  // namespace neq::conv

#endif
