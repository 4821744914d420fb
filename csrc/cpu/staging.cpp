#include "staging.h"

namespace neq::staging {

const Kernels& best_kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_kernels(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

}  // namespace neq::staging
