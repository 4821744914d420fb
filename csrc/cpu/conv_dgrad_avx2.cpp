// The loops of conv_dgrad for AVX2.
#include "conv_dgrad.h"

#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#define NEQ_LOOP_INLINE NEQ_AVX2_INLINE
#include "conv_dgrad_loops.h"

namespace neq::dgrad {
namespace {

NEQ_AVX2_INLINE void put_vector(float* to, __m256 value) { _mm256_storeu_ps(to, value); }
NEQ_AVX2_INLINE void put_vector(double* to, __m256d value) { _mm256_storeu_pd(to, value); }

template <class E>
struct Some : E {
  using Scalar = typename E::Vectors::Scalar;
  NEQ_AVX2_INLINE static void move(Scalar* to, const Scalar* from, int64_t count) {
    for (int64_t k = 0; k < count; ++k) to[k] = from[k];
  }
  NEQ_AVX2_INLINE static void put(typename E::Storage* to, const Scalar* from, int64_t count) {
    if constexpr (sizeof(Scalar) == sizeof(typename E::Storage)) {
      if (count == E::Vectors::kLanes) return put_vector(to, E::Vectors::load(from));
    }
    for (int64_t k = 0; k < count; ++k) to[k] = E::store(from[k]);
  }
  NEQ_AVX2_INLINE static void put_both(typename E::Storage* to, const Scalar* even,
                                       const Scalar* odd, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      to[2 * k] = E::store(even[k]);
      to[2 * k + 1] = E::store(odd[k]);
    }
  }
};

template <class E>
constexpr const Kernels& kOf = kKernels<Some<E>, 16, 4, 6>;

}  // namespace

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
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
