// Vectors of AVX2 as the loops of several operators use them, for the files of this set alone.
// V, a vector of sums: Scalar, Vector, kLanes, load, store, zero, add, fma(a, b, c) = a * b + c,
//   add_to(double*, Vector), sum(Vector), of its lanes, and keep(Vector&), for a register's sake:
//   the compiler then does not load the vector again where it is used
// E, an element: Storage, Vectors (its V), load(value) for one of them, load_vector(pointer) for
//   kLanes neighbours and load_even(pointer) for every other of 2 * kLanes
#pragma once

#include "element.h"
#include "isa.h"

namespace neq {
namespace {

template <class Vector>
NEQ_AVX2_INLINE void hold(Vector& value) {
  asm("" : "+x"(value));
}

struct Floats {
  using Scalar = float;
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;
  NEQ_AVX2_INLINE static __m256 load(const float* from) { return _mm256_loadu_ps(from); }
  NEQ_AVX2_INLINE static void store(float* to, __m256 value) { _mm256_storeu_ps(to, value); }
  NEQ_AVX2_INLINE static void keep(__m256& value) { hold(value); }
  NEQ_AVX2_INLINE static __m256 zero() { return _mm256_setzero_ps(); }
  NEQ_AVX2_INLINE static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  NEQ_AVX2_INLINE static __m256 fma(__m256 a, __m256 b, __m256 c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  NEQ_AVX2_INLINE static void add_to(double* sums, __m256 value) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
    _mm256_storeu_pd(sums + 4, _mm256_add_pd(_mm256_loadu_pd(sums + 4), high));
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
  NEQ_AVX2_INLINE static __m256d load(const double* from) { return _mm256_loadu_pd(from); }
  NEQ_AVX2_INLINE static void store(double* to, __m256d value) { _mm256_storeu_pd(to, value); }
  NEQ_AVX2_INLINE static void keep(__m256d& value) { hold(value); }
  NEQ_AVX2_INLINE static __m256d zero() { return _mm256_setzero_pd(); }
  NEQ_AVX2_INLINE static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
  NEQ_AVX2_INLINE static __m256d fma(__m256d a, __m256d b, __m256d c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  NEQ_AVX2_INLINE static void add_to(double* sums, __m256d value) {
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), value));
  }
  NEQ_AVX2_INLINE static double sum(__m256d value) {
    const __m128d half = _mm256_castpd256_pd128(value) + _mm256_extractf128_pd(value, 1);
    return _mm_cvtsd_f64(half + _mm_unpackhi_pd(half, half));
  }
};

struct Float32 : Float {
  using Vectors = Floats;
  NEQ_AVX2_INLINE static __m256 load_vector(const float* from) { return _mm256_loadu_ps(from); }
  NEQ_AVX2_INLINE static __m256 load_even(const float* from) {
    const __m256 even =
        _mm256_shuffle_ps(_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8), 0b10001000);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0b11011000));
  }
};

struct Float64 : Double {
  using Vectors = Doubles;
  NEQ_AVX2_INLINE static __m256d load_vector(const double* from) { return _mm256_loadu_pd(from); }
  NEQ_AVX2_INLINE static __m256d load_even(const double* from) {
    const __m256d even = _mm256_unpacklo_pd(_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4));
    return _mm256_permute4x64_pd(even, 0b11011000);
  }
};

NEQ_AVX2_INLINE __m256i load256(const uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

NEQ_AVX2_INLINE __m128i load128(const uint16_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

struct Float16 : Half {
  using Vectors = Floats;
  NEQ_AVX2_INLINE static __m256 load_vector(const uint16_t* from) {
    return _mm256_cvtph_ps(load128(from));
  }
  NEQ_AVX2_INLINE static __m256 load_even(const uint16_t* from) {
    const __m256i even = _mm256_and_si256(load256(from), _mm256_set1_epi32(0xffff));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(even, even), 0b11011000);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
};

struct Brain16 : BFloat16 {
  using Vectors = Floats;
  NEQ_AVX2_INLINE static __m256 load_vector(const uint16_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(from)), 16));
  }
  NEQ_AVX2_INLINE static __m256 load_even(const uint16_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load256(from), 16));
  }
};

}  // namespace
}  // namespace neq
