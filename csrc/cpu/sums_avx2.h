// The lanes of four vectors added up at once, for AVX2 and, of halves already added, for AVX-512.
#pragma once

#include "isa.h"

namespace neq {
namespace {

// to[k] += the sum of the lanes of vector k.
NEQ_AVX2_INLINE void add_four_sums(float* to, __m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  const __m256 cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
  const __m256d low = _mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
  const __m256d high = _mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd));
  const __m256 all = _mm256_castpd_ps(low) + _mm256_castpd_ps(high);
  const __m128 sums = _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
  _mm_storeu_ps(to, _mm_loadu_ps(to) + sums);
}

NEQ_AVX2_INLINE void add_four_sums(double* to, __m256d a, __m256d b, __m256d c, __m256d d) {
  const __m256d ab = _mm256_unpacklo_pd(a, b) + _mm256_unpackhi_pd(a, b);
  const __m256d cd = _mm256_unpacklo_pd(c, d) + _mm256_unpackhi_pd(c, d);
  const __m256d low = _mm256_permute2f128_pd(ab, cd, 0x20);
  const __m256d high = _mm256_permute2f128_pd(ab, cd, 0x31);
  _mm256_storeu_pd(to, _mm256_loadu_pd(to) + (low + high));
}

}  // namespace
}  // namespace neq
