// The loops of row_sgd and row_adamw in vectors of 256 bits.
#include "element.h"
#include "isa.h"
#include "row_step.h"

#if defined(__x86_64__)

#define NEQ_TARGET NEQ_AVX2
#define NEQ_INLINE NEQ_AVX2_INLINE

namespace neq::rows {
namespace {

NEQ_INLINE __m256 root_of(__m256 value) { return _mm256_sqrt_ps(value); }
NEQ_INLINE __m256d root_of(__m256d value) { return _mm256_sqrt_pd(value); }

// The processor's maximum gives b where either is NaN: right but where a is.
NEQ_INLINE __m256 larger(__m256 a, __m256 b) {
  return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
NEQ_INLINE __m256d larger(__m256d a, __m256d b) {
  return _mm256_blendv_pd(_mm256_max_pd(a, b), a, _mm256_cmp_pd(a, a, _CMP_UNORD_Q));
}

// Bits 0 to 7 as eight lanes of ones or zeros.
NEQ_INLINE __m256i lanes32(uint32_t bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each),
                            each);
}

NEQ_INLINE __m256i lanes64(uint32_t bits) {
  const __m256i each = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), each), each);
}

// Lanes that are not set are read and written back: storing single lanes costs many times as much.
struct Float32 {
  using Scalar = Float;
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;
  NEQ_INLINE static __m256 load(const float* source) { return _mm256_loadu_ps(source); }
  NEQ_INLINE static void store(float* target, __m256 value) { _mm256_storeu_ps(target, value); }
  NEQ_INLINE static void store_lanes(float* target, __m256 value, uint32_t lanes) {
    const __m256 mask = _mm256_castsi256_ps(lanes32(lanes));
    store(target, _mm256_blendv_ps(load(target), value, mask));
  }
};

struct Float64 {
  using Scalar = Double;
  using Vector = __m256d;
  static constexpr int64_t kLanes = 4;
  NEQ_INLINE static __m256d load(const double* source) { return _mm256_loadu_pd(source); }
  NEQ_INLINE static void store(double* target, __m256d value) { _mm256_storeu_pd(target, value); }
  NEQ_INLINE static void store_lanes(double* target, __m256d value, uint32_t lanes) {
    const __m256d mask = _mm256_castsi256_pd(lanes64(lanes));
    store(target, _mm256_blendv_pd(load(target), value, mask));
  }
};

NEQ_INLINE __m128i load128(const uint16_t* source) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
}

NEQ_INLINE void store128(uint16_t* target, __m128i value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), value);
}

// Eight 32-bit lanes that fit 16 bits, as eight of 16.
NEQ_INLINE __m128i narrow(__m256i value) {
  const __m256i packed = _mm256_packus_epi32(value, value);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

NEQ_INLINE void store_lanes16(uint16_t* target, __m128i value, uint32_t lanes) {
  const __m128i mask = narrow(_mm256_srli_epi32(lanes32(lanes), 16));
  store128(target, _mm_blendv_epi8(load128(target), value, mask));
}

struct Float16 {
  using Scalar = Half;
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;
  NEQ_INLINE static __m256 load(const uint16_t* source) { return _mm256_cvtph_ps(load128(source)); }
  NEQ_INLINE static __m128i rounded(__m256 value) {
    return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  NEQ_INLINE static void store(uint16_t* target, __m256 value) { store128(target, rounded(value)); }
  NEQ_INLINE static void store_lanes(uint16_t* target, __m256 value, uint32_t lanes) {
    store_lanes16(target, rounded(value), lanes);
  }
};

struct Brain16 {
  using Scalar = BFloat16;
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;
  NEQ_INLINE static __m256 load(const uint16_t* source) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(source)), 16));
  }
  // To nearest, ties to even: half of the last place, less one where it is even, is added.
  NEQ_INLINE static __m128i rounded(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i nan = _mm256_set1_epi32(0x7fc0);
    return narrow(_mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), nan, is_nan));
  }
  NEQ_INLINE static void store(uint16_t* target, __m256 value) { store128(target, rounded(value)); }
  NEQ_INLINE static void store_lanes(uint16_t* target, __m256 value, uint32_t lanes) {
    store_lanes16(target, rounded(value), lanes);
  }
};

}  // namespace
}  // namespace neq::rows

#include "row_step_loops.h"

namespace neq::rows {

const Kernels& avx2_kernels(Formula formula, neq_dtype dtype) noexcept {
  return table_of<Float32, Float64, Float16, Brain16>(formula, dtype);
}

}  // namespace neq::rows

#endif
