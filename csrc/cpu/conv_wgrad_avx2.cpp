// The vectors of conv_wgrad for AVX2; its loop is in conv_wgrad_loops.h.
#include "conv_wgrad.h"

#if defined(__x86_64__)

#include "isa.h"

#define NEQ_LOOP NEQ_AVX2
#include "conv_wgrad_loops.h"

namespace neq::conv {
namespace {

struct Floats {
  using Scalar = float;
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kRegisters = 16;
  static constexpr int64_t kRows = 4;
  NEQ_AVX2_INLINE static __m256 load(const float* from) { return _mm256_loadu_ps(from); }
  NEQ_AVX2_INLINE static __m256 zero() { return _mm256_setzero_ps(); }
  NEQ_AVX2_INLINE static void keep(__m256& value) { asm("" : "+x"(value)); }
  NEQ_AVX2_INLINE static __m256 fma(__m256 a, __m256 b, __m256 c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  NEQ_AVX2_INLINE static float sum(__m256 value) {
    __m128 half = _mm256_castps256_ps128(value) + _mm256_extractf128_ps(value, 1);
    half = half + _mm_movehl_ps(half, half);
    return _mm_cvtss_f32(half + _mm_movehdup_ps(half));
  }
};

struct Doubles {
  using Scalar = double;
  using Vector = __m256d;
  static constexpr int64_t kLanes = 4;
  static constexpr int64_t kRegisters = 16;
  static constexpr int64_t kRows = 4;
  NEQ_AVX2_INLINE static __m256d load(const double* from) { return _mm256_loadu_pd(from); }
  NEQ_AVX2_INLINE static __m256d zero() { return _mm256_setzero_pd(); }
  NEQ_AVX2_INLINE static void keep(__m256d& value) { asm("" : "+x"(value)); }
  NEQ_AVX2_INLINE static __m256d fma(__m256d a, __m256d b, __m256d c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  NEQ_AVX2_INLINE static double sum(__m256d value) {
    const __m128d half = _mm256_castpd256_pd128(value) + _mm256_extractf128_pd(value, 1);
    return _mm_cvtsd_f64(half + _mm_unpackhi_pd(half, half));
  }
};

}  // namespace

const Kernels& avx2_kernels(neq_dtype dtype) noexcept { return kernels_of<Floats, Doubles>(dtype); }

}  // namespace neq::conv

#endif
