// Vectors of AVX2 as the loops of several operators use them, for the files of this set alone.
// V, a vector of sums: Scalar, Vector, kLanes, load, store, zero, broadcast(Scalar), add,
//   fma(a, b, c) = a * b + c, add_to(double*, Vector), sum(Vector), of its lanes,
//   add_sums(to, a, b, c, d), to[0] += sum(a) to to[3] += sum(d), and keep(Vector&), for a
//   register's sake: the compiler then does not load the vector again where it is used
// E, an element: Storage, Vectors (its V), load(value) for one of them, load_vector(pointer) for
//   kLanes neighbours and load_even(pointer) for every other of 2 * kLanes;
//   Lanes, EvenLanes: some of a vector's lanes, for load(pointer, lanes, readable), which leaves
//   zeros in the others and touches none of their elements but what is readable
#pragma once

#include "element.h"
#include "isa.h"
#include "lanes.h"
#include "sums_avx2.h"

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
  NEQ_AVX2_INLINE static __m256 broadcast(float value) { return _mm256_set1_ps(value); }
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
  NEQ_AVX2_INLINE static double total(__m256 value) {
    const __m256d half = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(value)),
                                       _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
    const __m128d pair = _mm256_castpd256_pd128(half) + _mm256_extractf128_pd(half, 1);
    return _mm_cvtsd_f64(pair + _mm_unpackhi_pd(pair, pair));
  }
  NEQ_AVX2_INLINE static float sum(__m256 value) {
    __m128 half = _mm256_castps256_ps128(value) + _mm256_extractf128_ps(value, 1);
    half = half + _mm_movehl_ps(half, half);
    return _mm_cvtss_f32(half + _mm_movehdup_ps(half));
  }
  NEQ_AVX2_INLINE static void add_sums(float* to, __m256 a, __m256 b, __m256 c, __m256 d) {
    add_four_sums(to, a, b, c, d);
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
  NEQ_AVX2_INLINE static __m256d broadcast(double value) { return _mm256_set1_pd(value); }
  NEQ_AVX2_INLINE static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
  NEQ_AVX2_INLINE static __m256d fma(__m256d a, __m256d b, __m256d c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  NEQ_AVX2_INLINE static void add_to(double* sums, __m256d value) {
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), value));
  }
  NEQ_AVX2_INLINE static double total(__m256d value) { return sum(value); }
  NEQ_AVX2_INLINE static double sum(__m256d value) {
    const __m128d half = _mm256_castpd256_pd128(value) + _mm256_extractf128_pd(value, 1);
    return _mm_cvtsd_f64(half + _mm_unpackhi_pd(half, half));
  }
  NEQ_AVX2_INLINE static void add_sums(double* to, __m256d a, __m256d b, __m256d c, __m256d d) {
    add_four_sums(to, a, b, c, d);
  }
};

// Ones in lanes of 32 bits from `begin` to `end`, which may lie beyond the vector.
NEQ_AVX2_INLINE __m256i ones(int64_t begin, int64_t end) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(begin)), lane);
  const __m256i within = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane);
  return _mm256_andnot_si256(before, within);
}

// Neighbouring lanes of `kWords` times 32 bits: of every element, or of every other in two vectors.
template <int64_t kWords>
struct MaskedLanes {
  __m256i mask;
  MaskedLanes() = default;
  NEQ_AVX2_INLINE explicit MaskedLanes(LaneRange lanes)
      : mask(ones(kWords * lanes.begin, kWords * lanes.end)) {}
};

template <int64_t kWords>
struct MaskedEvenLanes {
  __m256i low;
  __m256i high;
  MaskedEvenLanes() = default;
  NEQ_AVX2_INLINE explicit MaskedEvenLanes(LaneRange lanes) {
    const int64_t begin = 2 * kWords * lanes.begin;
    const int64_t end = lanes.empty() ? begin : kWords * (2 * lanes.end - 1);
    low = ones(begin, end);
    high = ones(begin - 8, end - 8);
  }
};

// Lanes of 16-bit elements, which no instruction loads under a mask.
template <int64_t kStep>
struct HalfLanes {
  __m256i mask;
  LaneRange range;
  HalfLanes() = default;
  NEQ_AVX2_INLINE explicit HalfLanes(LaneRange lanes)
      : mask(ones(lanes.begin, lanes.end)), range(lanes) {}
};

// E::load_vector or load_even under a mask; lane by lane where memory ends within the vector.
template <class E, int64_t kStep>
NEQ_AVX2_INLINE __m256 load_halves(const uint16_t* from, const HalfLanes<kStep>& lanes,
                                   const Readable& readable) {
  if (readable.has(from, 8 * kStep)) {
    const __m256 value = kStep == 1 ? E::load_vector(from) : E::load_even(from);
    return _mm256_and_ps(value, _mm256_castsi256_ps(lanes.mask));
  }
  uint16_t some[8] = {};
  for (int64_t k = lanes.range.begin; k < lanes.range.end; ++k) some[k] = from[k * kStep];
  return E::load_vector(some);
}

struct Float32 : Float {
  using Vectors = Floats;
  NEQ_AVX2_INLINE static __m256 load_vector(const float* from) { return _mm256_loadu_ps(from); }
  NEQ_AVX2_INLINE static __m256 even(__m256 low, __m256 high) {
    const __m256d mixed = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0b10001000));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(mixed, 0b11011000));
  }
  NEQ_AVX2_INLINE static __m256 load_even(const float* from) {
    return even(_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8));
  }
  using Lanes = MaskedLanes<1>;
  using EvenLanes = MaskedEvenLanes<1>;
  NEQ_AVX2_INLINE static __m256 load(const float* from, const Lanes& lanes, const Readable&) {
    return _mm256_maskload_ps(from, lanes.mask);
  }
  NEQ_AVX2_INLINE static __m256 load(const float* from, const EvenLanes& lanes, const Readable&) {
    return even(_mm256_maskload_ps(from, lanes.low), _mm256_maskload_ps(from + 8, lanes.high));
  }
  using Float::load;
};

struct Float64 : Double {
  using Vectors = Doubles;
  NEQ_AVX2_INLINE static __m256d load_vector(const double* from) { return _mm256_loadu_pd(from); }
  NEQ_AVX2_INLINE static __m256d even(__m256d low, __m256d high) {
    return _mm256_permute4x64_pd(_mm256_unpacklo_pd(low, high), 0b11011000);
  }
  NEQ_AVX2_INLINE static __m256d load_even(const double* from) {
    return even(_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4));
  }
  using Lanes = MaskedLanes<2>;
  using EvenLanes = MaskedEvenLanes<2>;
  NEQ_AVX2_INLINE static __m256d load(const double* from, const Lanes& lanes, const Readable&) {
    return _mm256_maskload_pd(from, lanes.mask);
  }
  NEQ_AVX2_INLINE static __m256d load(const double* from, const EvenLanes& lanes, const Readable&) {
    return even(_mm256_maskload_pd(from, lanes.low), _mm256_maskload_pd(from + 4, lanes.high));
  }
  using Double::load;
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
  using Lanes = HalfLanes<1>;
  using EvenLanes = HalfLanes<2>;
  template <class Some>
  NEQ_AVX2_INLINE static __m256 load(const uint16_t* from, const Some& lanes,
                                     const Readable& readable) {
    return load_halves<Float16>(from, lanes, readable);
  }
  using Half::load;
};

struct Brain16 : BFloat16 {
  using Vectors = Floats;
  NEQ_AVX2_INLINE static __m256 load_vector(const uint16_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(from)), 16));
  }
  NEQ_AVX2_INLINE static __m256 load_even(const uint16_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load256(from), 16));
  }
  using Lanes = HalfLanes<1>;
  using EvenLanes = HalfLanes<2>;
  template <class Some>
  NEQ_AVX2_INLINE static __m256 load(const uint16_t* from, const Some& lanes,
                                     const Readable& readable) {
    return load_halves<Brain16>(from, lanes, readable);
  }
  using BFloat16::load;
};

}  // namespace
}  // namespace neq
