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

// Floats rounded to nearest, ties to even.
NEQ_AVX512_INLINE __m256i rounded(Float16, __m512 value) {
  return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

NEQ_AVX512_INLINE __m256i rounded(Brain16, __m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i nan = _mm512_set1_epi32(0x7fc0);
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, _mm512_srli_epi32(sum, 16), nan));
}

// Twice as many elements, of two vectors in turn.
NEQ_AVX512_INLINE void put_turns(float* to, const float* even, const float* odd, int64_t count) {
  const auto mask = static_cast<__mmask16>(bits(0, count));
  const __m512 a = _mm512_maskz_loadu_ps(mask, even);
  const __m512 b = _mm512_maskz_loadu_ps(mask, odd);
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const auto all = static_cast<uint32_t>((uint64_t{1} << 2 * count) - 1);
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(all), _mm512_permutex2var_ps(a, low, b));
  _mm512_mask_storeu_ps(to + 16, static_cast<__mmask16>(all >> 16),
                        _mm512_permutex2var_ps(a, high, b));
}

NEQ_AVX512_INLINE void put_turns(double* to, const double* even, const double* odd, int64_t count) {
  const auto mask = static_cast<__mmask8>(bits(0, count));
  const __m512d a = _mm512_maskz_loadu_pd(mask, even);
  const __m512d b = _mm512_maskz_loadu_pd(mask, odd);
  const uint32_t all = bits(0, 2 * count);
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(all),
                        _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b));
  _mm512_mask_storeu_pd(
      to + 8, static_cast<__mmask8>(all >> 8),
      _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b));
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
      const auto mask = static_cast<__mmask16>(neq::bits(0, count));
      const __m256i value = rounded(E(), _mm512_maskz_loadu_ps(mask, from));
      _mm256_mask_storeu_epi16(to, mask, value);
    }
  }
  NEQ_AVX512_INLINE static void put_both(typename E::Storage* to, const Scalar* even,
                                         const Scalar* odd, int64_t count) {
    if constexpr (sizeof(Scalar) == sizeof(typename E::Storage)) {
      put_turns(to, even, odd, count);
    } else {
      const auto mask = static_cast<__mmask16>(neq::bits(0, count));
      const __m256i low = rounded(E(), _mm512_maskz_loadu_ps(mask, even));
      const __m256i high = rounded(E(), _mm512_maskz_loadu_ps(mask, odd));
      const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm512_mask_storeu_epi32(to, mask, both);
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
