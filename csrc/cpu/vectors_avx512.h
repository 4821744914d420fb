// Vectors of AVX-512 as the loops of several operators use them, for the files of this set alone.
// V, a vector of sums: Scalar, Vector, kLanes, load, store, zero, broadcast(Scalar), add,
//   fma(a, b, c) = a * b + c, add_to(double*, Vector), sum(Vector), of its lanes,
//   add_sums(to, a, b, c, d), to[0] += sum(a) to to[3] += sum(d), and keep(Vector&), for a
//   register's sake: the compiler then does not load the vector again where it is used
// E, an element: Storage, Vectors (its V), load(value) for one of them, load_vector(pointer) for
//   kLanes neighbours and load_even(pointer) for every other of 2 * kLanes;
//   Lanes, EvenLanes: some of a vector's lanes, of which load(pointer, lanes, readable) touches
//   no other element, and leaves zeros in the others
#pragma once

#include "element.h"
#include "isa.h"
#include "lanes.h"
#include "sums_avx2.h"

namespace neq {
namespace {

NEQ_AVX512_INLINE void add_doubles(double* sums, __m512d value) {
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), value));
}

template <class Vector>
NEQ_AVX512_INLINE void hold([[maybe_unused]] Vector& value) {
#if !defined(NEQ_EMULATE_AVX512)
  asm("" : "+v"(value));
#endif
}

struct Floats {
  using Scalar = float;
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;
  NEQ_AVX512_INLINE static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  NEQ_AVX512_INLINE static void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
  NEQ_AVX512_INLINE static void keep(__m512& value) { hold(value); }
  NEQ_AVX512_INLINE static __m512 zero() { return _mm512_setzero_ps(); }
  NEQ_AVX512_INLINE static __m512 broadcast(float value) { return _mm512_set1_ps(value); }
  NEQ_AVX512_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  NEQ_AVX512_INLINE static __m512 fma(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  NEQ_AVX512_INLINE static void add_to(double* sums, __m512 value) {
    add_doubles(sums, _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
    add_doubles(sums + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
  }
  NEQ_AVX512_INLINE static double total(__m512 value) {
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(value)),
                                              _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))));
  }
  NEQ_AVX512_INLINE static __m256 halves(__m512 value) {
    return _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
  }
  NEQ_AVX512_INLINE static float sum(__m512 value) {
    const __m256 half = halves(value);
    __m128 part = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
    part = part + _mm_movehl_ps(part, part);
    return _mm_cvtss_f32(part + _mm_movehdup_ps(part));
  }
  NEQ_AVX512_INLINE static void add_sums(float* to, __m512 a, __m512 b, __m512 c, __m512 d) {
    add_four_sums(to, halves(a), halves(b), halves(c), halves(d));
  }
};

struct Doubles {
  using Scalar = double;
  using Vector = __m512d;
  static constexpr int64_t kLanes = 8;
  NEQ_AVX512_INLINE static __m512d load(const double* from) { return _mm512_loadu_pd(from); }
  NEQ_AVX512_INLINE static void store(double* to, __m512d value) { _mm512_storeu_pd(to, value); }
  NEQ_AVX512_INLINE static void keep(__m512d& value) { hold(value); }
  NEQ_AVX512_INLINE static __m512d zero() { return _mm512_setzero_pd(); }
  NEQ_AVX512_INLINE static __m512d broadcast(double value) { return _mm512_set1_pd(value); }
  NEQ_AVX512_INLINE static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
  NEQ_AVX512_INLINE static __m512d fma(__m512d a, __m512d b, __m512d c) {
    return _mm512_fmadd_pd(a, b, c);
  }
  NEQ_AVX512_INLINE static void add_to(double* sums, __m512d value) { add_doubles(sums, value); }
  NEQ_AVX512_INLINE static double total(__m512d value) { return _mm512_reduce_add_pd(value); }
  NEQ_AVX512_INLINE static double sum(__m512d value) { return _mm512_reduce_add_pd(value); }
  NEQ_AVX512_INLINE static __m256d halves(__m512d value) {
    return _mm256_add_pd(_mm512_castpd512_pd256(value), _mm512_extractf64x4_pd(value, 1));
  }
  NEQ_AVX512_INLINE static void add_sums(double* to, __m512d a, __m512d b, __m512d c, __m512d d) {
    add_four_sums(to, halves(a), halves(b), halves(c), halves(d));
  }
};

// Bits from `begin` to `end`, of up to 32.
inline uint32_t bits(int64_t begin, int64_t end) {
  return static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << begin));
}

// Neighbouring lanes, as masks: of every element, or of every other in two vectors.
template <class Mask>
struct MaskedLanes {
  Mask mask;
  MaskedLanes() = default;
  explicit MaskedLanes(LaneRange lanes) : mask(static_cast<Mask>(bits(lanes.begin, lanes.end))) {}
};

template <class Mask, int64_t kLanes>
struct MaskedEvenLanes {
  Mask low;
  Mask high;
  MaskedEvenLanes() = default;
  explicit MaskedEvenLanes(LaneRange lanes) {
    const uint32_t all = lanes.empty() ? 0 : bits(2 * lanes.begin, 2 * lanes.end - 1);
    low = static_cast<Mask>(all & ((1u << kLanes) - 1));
    high = static_cast<Mask>(all >> kLanes);
  }
};

// The same of 16-bit elements, which fill one vector.
struct MaskedEvenHalves {
  __mmask32 mask;
  MaskedEvenHalves() = default;
  explicit MaskedEvenHalves(LaneRange lanes)
      : mask(lanes.empty() ? 0 : bits(2 * lanes.begin, 2 * lanes.end - 1)) {}
};

struct Float32 : Float {
  using Vectors = Floats;
  NEQ_AVX512_INLINE static __m512 load_vector(const float* from) { return _mm512_loadu_ps(from); }
  NEQ_AVX512_INLINE static __m512 even(__m512 low, __m512 high) {
    const __m512i lanes =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(low, lanes, high);
  }
  NEQ_AVX512_INLINE static __m512 load_even(const float* from) {
    return even(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16));
  }
  using Lanes = MaskedLanes<__mmask16>;
  using EvenLanes = MaskedEvenLanes<__mmask16, 16>;
  NEQ_AVX512_INLINE static __m512 load(const float* from, Lanes lanes, const Readable&) {
    return _mm512_maskz_loadu_ps(lanes.mask, from);
  }
  NEQ_AVX512_INLINE static __m512 load(const float* from, EvenLanes lanes, const Readable&) {
    return even(_mm512_maskz_loadu_ps(lanes.low, from),
                _mm512_maskz_loadu_ps(lanes.high, from + 16));
  }
  using Float::load;
};

struct Float64 : Double {
  using Vectors = Doubles;
  NEQ_AVX512_INLINE static __m512d load_vector(const double* from) { return _mm512_loadu_pd(from); }
  NEQ_AVX512_INLINE static __m512d even(__m512d low, __m512d high) {
    return _mm512_permutex2var_pd(low, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), high);
  }
  NEQ_AVX512_INLINE static __m512d load_even(const double* from) {
    return even(_mm512_loadu_pd(from), _mm512_loadu_pd(from + 8));
  }
  using Lanes = MaskedLanes<__mmask8>;
  using EvenLanes = MaskedEvenLanes<__mmask8, 8>;
  NEQ_AVX512_INLINE static __m512d load(const double* from, Lanes lanes, const Readable&) {
    return _mm512_maskz_loadu_pd(lanes.mask, from);
  }
  NEQ_AVX512_INLINE static __m512d load(const double* from, EvenLanes lanes, const Readable&) {
    return even(_mm512_maskz_loadu_pd(lanes.low, from),
                _mm512_maskz_loadu_pd(lanes.high, from + 8));
  }
  using Double::load;
};

NEQ_AVX512_INLINE __m256i load256(const uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

struct Float16 : Half {
  using Vectors = Floats;
  NEQ_AVX512_INLINE static __m512 widen(__m256i value) { return _mm512_cvtph_ps(value); }
  NEQ_AVX512_INLINE static __m512 even(__m512i value) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(value));
  }
  NEQ_AVX512_INLINE static __m512 load_vector(const uint16_t* from) { return widen(load256(from)); }
  NEQ_AVX512_INLINE static __m512 load_even(const uint16_t* from) {
    return even(_mm512_loadu_si512(from));
  }
  using Lanes = MaskedLanes<__mmask16>;
  using EvenLanes = MaskedEvenHalves;
  NEQ_AVX512_INLINE static __m512 load(const uint16_t* from, Lanes lanes, const Readable&) {
    return widen(_mm256_maskz_loadu_epi16(lanes.mask, from));
  }
  NEQ_AVX512_INLINE static __m512 load(const uint16_t* from, EvenLanes lanes, const Readable&) {
    return even(_mm512_maskz_loadu_epi16(lanes.mask, from));
  }
  using Half::load;
};

struct Brain16 : BFloat16 {
  using Vectors = Floats;
  NEQ_AVX512_INLINE static __m512 widen(__m256i value) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(value), 16));
  }
  NEQ_AVX512_INLINE static __m512 even(__m512i value) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(value, 16));
  }
  NEQ_AVX512_INLINE static __m512 load_vector(const uint16_t* from) { return widen(load256(from)); }
  NEQ_AVX512_INLINE static __m512 load_even(const uint16_t* from) {
    return even(_mm512_loadu_si512(from));
  }
  using Lanes = MaskedLanes<__mmask16>;
  using EvenLanes = MaskedEvenHalves;
  NEQ_AVX512_INLINE static __m512 load(const uint16_t* from, Lanes lanes, const Readable&) {
    return widen(_mm256_maskz_loadu_epi16(lanes.mask, from));
  }
  NEQ_AVX512_INLINE static __m512 load(const uint16_t* from, EvenLanes lanes, const Readable&) {
    return even(_mm512_maskz_loadu_epi16(lanes.mask, from));
  }
  using BFloat16::load;
};

}  // namespace
}  // namespace neq
