// The loops of staging for AVX-512.
#if defined(__x86_64__)

#include "vectors_avx512.h"

#define NEQ_LOOP NEQ_AVX512
#define NEQ_LOOP_INLINE NEQ_AVX512_INLINE
#include "staging_loops.h"

namespace neq::staging {
namespace {

template <class E>
const Kernels& kernels(neq_dtype dtype) noexcept {
  // Squares of AVX2 suit short rows better than larger ones.
  static const Kernels table = {copy<E>, avx2_kernels(dtype).transpose};
  return table;
}

}  // namespace

const Kernels& avx512_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kernels<Float64>(dtype);
    case NEQ_F16:
      return kernels<Float16>(dtype);
    case NEQ_BF16:
      return kernels<Brain16>(dtype);
    case NEQ_F32:
      break;
  }
  return kernels<Float32>(NEQ_F32);
}

}  // namespace neq::staging

#endif
