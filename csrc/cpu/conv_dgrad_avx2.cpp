// The loops of conv_dgrad for AVX2.
#include "conv_dgrad.h"

#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#define NEQ_LOOP_INLINE NEQ_AVX2_INLINE
#include "conv_dgrad_loops.h"

namespace neq::dgrad {
namespace {

NEQ_AVX2_INLINE void put_vector(Float32, float* to, __m256 value) { _mm256_storeu_ps(to, value); }
NEQ_AVX2_INLINE void put_vector(Float64, double* to, __m256d value) { _mm256_storeu_pd(to, value); }

NEQ_AVX2_INLINE void put_vector(Float16, uint16_t* to, __m256 value) {
  const __m128i half = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
}

// To nearest, ties to even.
NEQ_AVX2_INLINE void put_vector(Brain16, uint16_t* to, __m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i high =
      _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), is_nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0b11011000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

template <class E>
struct Some : E {
  using Scalar = typename E::Vectors::Scalar;
  NEQ_AVX2_INLINE static void move(Scalar* to, const Scalar* from, int64_t count) {
    for (int64_t k = 0; k < count; ++k) to[k] = from[k];
  }
  NEQ_AVX2_INLINE static void put(typename E::Storage* to, const Scalar* from, int64_t count) {
    if (count == E::Vectors::kLanes) return put_vector(E(), to, E::Vectors::load(from));
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
