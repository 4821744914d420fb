// The vectors of conv_wgrad for AVX-512; its loop is in conv_wgrad_loops.h.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "isa.h"

#define NEQ_LOOP NEQ_AVX512
#include "conv_wgrad_loops.h"

namespace neq::conv {
namespace {

template <class Vector>
NEQ_AVX512_INLINE void hold(Vector& value) {
#if !defined(NEQ_EMULATE_AVX512)
  asm("" : "+v"(value));
#endif
}

struct Floats {
  using Scalar = float;
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kRegisters = 32;
  static constexpr int64_t kRows = 6;
  NEQ_AVX512_INLINE static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  NEQ_AVX512_INLINE static __m512 zero() { return _mm512_setzero_ps(); }
  NEQ_AVX512_INLINE static void keep(__m512& value) { hold(value); }
  NEQ_AVX512_INLINE static __m512 fma(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  NEQ_AVX512_INLINE static float sum(__m512 value) {
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
    __m128 part = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
    part = part + _mm_movehl_ps(part, part);
    return _mm_cvtss_f32(part + _mm_movehdup_ps(part));
  }
};

struct Doubles {
  using Scalar = double;
  using Vector = __m512d;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kRegisters = 32;
  static constexpr int64_t kRows = 6;
  NEQ_AVX512_INLINE static __m512d load(const double* from) { return _mm512_loadu_pd(from); }
  NEQ_AVX512_INLINE static __m512d zero() { return _mm512_setzero_pd(); }
  NEQ_AVX512_INLINE static void keep(__m512d& value) { hold(value); }
  NEQ_AVX512_INLINE static __m512d fma(__m512d a, __m512d b, __m512d c) {
    return _mm512_fmadd_pd(a, b, c);
  }
  NEQ_AVX512_INLINE static double sum(__m512d value) { return _mm512_reduce_add_pd(value); }
};

}  // namespace

const Kernels& avx512_kernels(neq_dtype dtype) noexcept {
  return kernels_of<Floats, Doubles>(dtype);
}

}  // namespace neq::conv

#endif
