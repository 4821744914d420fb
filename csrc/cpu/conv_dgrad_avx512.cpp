// The loops of conv_dgrad for AVX-512.
#include "conv_dgrad.h"

#if defined(__x86_64__)

#include "vectors_avx512.h"

#define NEQ_LOOP NEQ_AVX512
#define NEQ_LOOP_INLINE NEQ_AVX512_INLINE
#include "conv_dgrad_loops.h"

namespace neq::dgrad {
namespace {

NEQ_AVX512_INLINE void move_some(float* to, const float* from, int64_t count) {
  const auto mask = static_cast<__mmask16>(bits(0, count));
  _mm512_mask_storeu_ps(to, mask, _mm512_maskz_loadu_ps(mask, from));
}

NEQ_AVX512_INLINE void move_some(double* to, const double* from, int64_t count) {
  const auto mask = static_cast<__mmask8>(bits(0, count));
  _mm512_mask_storeu_pd(to, mask, _mm512_maskz_loadu_pd(mask, from));
}

template <class E>
struct Some : E {
  using Scalar = typename E::Vectors::Scalar;
  NEQ_AVX512_INLINE static void move(Scalar* to, const Scalar* from, int64_t count) {
    move_some(to, from, count);
  }
  NEQ_AVX512_INLINE static void put(typename E::Storage* to, const Scalar* from, int64_t count) {
    if constexpr (sizeof(Scalar) == sizeof(typename E::Storage)) {
      move_some(to, from, count);
    } else {
      for (int64_t k = 0; k < count; ++k) to[k] = E::store(from[k]);
    }
  }
};

template <class E>
constexpr const Kernels& kOf = kKernels<Some<E>, 32, 8, 6>;

}  // namespace

const Kernels& avx512_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kOf<Float64>;
    case NEQ_F16:
      return kOf<Float16>;
    case NEQ_BF16:
      return kOf<Brain16>;
    case NEQ_F32:
      break;
  }
  return kOf<Float32>;
}

}  // namespace neq::dgrad

#endif
