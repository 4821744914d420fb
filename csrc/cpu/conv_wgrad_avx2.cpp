// The loop of conv_wgrad for AVX2.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#include "conv_wgrad_loops.h"

namespace neq::conv {

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  return kernels_of<Floats, Doubles, 16, 4>(dtype);
}

}  // namespace neq::conv

#endif
