// The loops of row_sgd and row_adamw in vectors of 512 bits.
#include "element.h"
#include "isa.h"
#include "row_step.h"

#if defined(__x86_64__)

#define NEQ_TARGET NEQ_AVX512
#define NEQ_INLINE NEQ_AVX512_INLINE

namespace neq::rows {
namespace {

NEQ_INLINE __m512 root_of(__m512 value) { return _mm512_sqrt_ps(value); }
NEQ_INLINE __m512d root_of(__m512d value) { return _mm512_sqrt_pd(value); }

// The processor's maximum gives b where either is NaN: right but where a is.
NEQ_INLINE __m512 larger(__m512 a, __m512 b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_max_ps(a, b), a);
}
NEQ_INLINE __m512d larger(__m512d a, __m512d b) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q), _mm512_max_pd(a, b), a);
}

struct Float32 {
  using Scalar = Float;
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;
  NEQ_INLINE static __m512 load(const float* source) { return _mm512_loadu_ps(source); }
  NEQ_INLINE static void store(float* target, __m512 value) { _mm512_storeu_ps(target, value); }
  NEQ_INLINE static void store_lanes(float* target, __m512 value, uint32_t lanes) {
    _mm512_mask_storeu_ps(target, static_cast<__mmask16>(lanes), value);
  }
};

struct Float64 {
  using Scalar = Double;
  using Vector = __m512d;
  static constexpr int64_t kLanes = 8;
  NEQ_INLINE static __m512d load(const double* source) { return _mm512_loadu_pd(source); }
  NEQ_INLINE static void store(double* target, __m512d value) { _mm512_storeu_pd(target, value); }
  NEQ_INLINE static void store_lanes(double* target, __m512d value, uint32_t lanes) {
    _mm512_mask_storeu_pd(target, static_cast<__mmask8>(lanes), value);
  }
};

NEQ_INLINE __m256i load256(const uint16_t* source) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
}

NEQ_INLINE void store256(uint16_t* target, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), value);
}

struct Float16 {
  using Scalar = Half;
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;
  NEQ_INLINE static __m512 load(const uint16_t* source) { return _mm512_cvtph_ps(load256(source)); }
  NEQ_INLINE static __m256i rounded(__m512 value) {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  NEQ_INLINE static void store(uint16_t* target, __m512 value) { store256(target, rounded(value)); }
  NEQ_INLINE static void store_lanes(uint16_t* target, __m512 value, uint32_t lanes) {
    _mm256_mask_storeu_epi16(target, static_cast<__mmask16>(lanes), rounded(value));
  }
};

struct Brain16 {
  using Scalar = BFloat16;
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;
  NEQ_INLINE static __m512 load(const uint16_t* source) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(source)), 16));
  }
  // To nearest, ties to even: half of the last place, less one where it is even, is added.
  NEQ_INLINE static __m256i rounded(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i nan = _mm512_set1_epi32(0x7fc0);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, _mm512_srli_epi32(sum, 16), nan));
  }
  NEQ_INLINE static void store(uint16_t* target, __m512 value) { store256(target, rounded(value)); }
  NEQ_INLINE static void store_lanes(uint16_t* target, __m512 value, uint32_t lanes) {
    _mm256_mask_storeu_epi16(target, static_cast<__mmask16>(lanes), rounded(value));
  }
};

}  // namespace
}  // namespace neq::rows

#include "row_step_loops.h"

namespace neq::rows {

const Kernels& avx512_kernels(Formula formula, neq_dtype dtype) noexcept {
  return table_of<Float32, Float64, Float16, Brain16>(formula, dtype);
}

}  // namespace neq::rows

#endif
