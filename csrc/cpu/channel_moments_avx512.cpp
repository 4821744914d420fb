// The AVX-512 loops of channel_moments: eight elements at a time, widened to fp64; a mask takes
// what is left over.
#include "channel_moments.h"

#if defined(__x86_64__)

#include "channel_moments_prefetch.h"
#include "channel_moments_table.h"
#include "element.h"
#include "isa.h"

namespace neq::moments {
namespace {

constexpr int64_t kLanes = 8;
// Rows that share a visit to their sums: enough to hide it, few enough that the processor's own
// prefetching follows each of them.
constexpr int64_t kRows = 4;

NEQ_AVX512_INLINE __mmask8 first_lanes(int64_t n) { return static_cast<__mmask8>((1u << n) - 1); }

struct Float32 : Float {
  static constexpr neq_dtype kDtype = NEQ_F32;
  NEQ_AVX512_INLINE static __m512d load_vector(const float* from) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(from));
  }
  NEQ_AVX512_INLINE static __m512d load_lanes(const float* from, __mmask8 lanes) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(lanes, from));
  }
};

struct Float64 : Double {
  static constexpr neq_dtype kDtype = NEQ_F64;
  NEQ_AVX512_INLINE static __m512d load_vector(const double* from) { return _mm512_loadu_pd(from); }
  NEQ_AVX512_INLINE static __m512d load_lanes(const double* from, __mmask8 lanes) {
    return _mm512_maskz_loadu_pd(lanes, from);
  }
};

NEQ_AVX512_INLINE __m128i load_narrow(const uint16_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

struct Float16 : Half {
  static constexpr neq_dtype kDtype = NEQ_F16;
  NEQ_AVX512_INLINE static __m512d widen(__m128i bits) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(bits));
  }
  NEQ_AVX512_INLINE static __m512d load_vector(const uint16_t* from) {
    return widen(load_narrow(from));
  }
  NEQ_AVX512_INLINE static __m512d load_lanes(const uint16_t* from, __mmask8 lanes) {
    return widen(_mm_maskz_loadu_epi16(lanes, from));
  }
};

struct Brain16 : BFloat16 {
  static constexpr neq_dtype kDtype = NEQ_BF16;
  NEQ_AVX512_INLINE static __m512d widen(__m128i bits) {
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
    return _mm512_cvtps_pd(_mm256_castsi256_ps(wide));
  }
  NEQ_AVX512_INLINE static __m512d load_vector(const uint16_t* from) {
    return widen(load_narrow(from));
  }
  NEQ_AVX512_INLINE static __m512d load_lanes(const uint16_t* from, __mmask8 lanes) {
    return widen(_mm_maskz_loadu_epi16(lanes, from));
  }
};

struct Vectors {
  __m512d ab;
  __m512d aa;
  __m512d bb;

  NEQ_AVX512_INLINE void add(__m512d a, __m512d b) {
    ab = _mm512_fmadd_pd(a, b, ab);
    aa = _mm512_fmadd_pd(a, a, aa);
    bb = _mm512_fmadd_pd(b, b, bb);
  }

  NEQ_AVX512_INLINE void add(const Vectors& other) {
    ab = _mm512_add_pd(ab, other.ab);
    aa = _mm512_add_pd(aa, other.aa);
    bb = _mm512_add_pd(bb, other.bb);
  }
};

NEQ_AVX512_INLINE Vectors load(Sums sums, int64_t channel, __mmask8 lanes) {
  const double* at = sums.data + channel;
  return {_mm512_maskz_loadu_pd(lanes, at), _mm512_maskz_loadu_pd(lanes, at + sums.distance),
          _mm512_maskz_loadu_pd(lanes, at + 2 * sums.distance)};
}

NEQ_AVX512_INLINE void store(Sums sums, int64_t channel, const Vectors& vectors, __mmask8 lanes) {
  double* at = sums.data + channel;
  _mm512_mask_storeu_pd(at, lanes, vectors.ab);
  _mm512_mask_storeu_pd(at + sums.distance, lanes, vectors.aa);
  _mm512_mask_storeu_pd(at + 2 * sums.distance, lanes, vectors.bb);
}

NEQ_AVX512_INLINE __m256d half(__m512d value) {
  return _mm256_add_pd(_mm512_castpd512_pd256(value), _mm512_extractf64x4_pd(value, 1));
}

// The lanes of each of the three, added up.
NEQ_AVX512_INLINE void add_lanes(Sums sums, int64_t channel, const Vectors& v) {
  const __m256d bb = half(v.bb);
  const __m256d pairs = _mm256_hadd_pd(half(v.ab), half(v.aa));  // ab01, aa01, ab23, aa23
  const __m128d both = _mm256_castpd256_pd128(pairs) + _mm256_extractf128_pd(pairs, 1);
  const __m128d last = _mm256_castpd256_pd128(bb) + _mm256_extractf128_pd(bb, 1);
  double* at = sums.data + channel;
  at[0] += _mm_cvtsd_f64(both);
  at[sums.distance] += _mm_cvtsd_f64(_mm_unpackhi_pd(both, both));
  at[2 * sums.distance] += _mm_cvtsd_f64(last) + _mm_cvtsd_f64(_mm_unpackhi_pd(last, last));
}

template <class A, class B>
struct Loops {
  using Left = typename A::Storage;
  using Right = typename B::Storage;

  // kVectors vectors of channels from `channel` on, of the last one only `lanes`, in the rows from
  // `first` on.
  template <int kVectors, bool kWhole>
  NEQ_AVX512_INLINE static void add_columns(Sums sums, const Piece& piece, int64_t channel,
                                            int64_t first, int64_t rows, __mmask8 lanes) {
    Vectors totals[kVectors];
    for (int v = 0; v < kVectors; ++v) totals[v] = load(sums, channel + v * kLanes, lanes);
    const char* left = piece.a + first * piece.along.a;
    const char* right = piece.b + first * piece.along.b;
    Ahead<kRows, kVectors * kLanes * sizeof(Left)> next_a(
        left + channel * sizeof(Left), channel * sizeof(Left), piece.channels * sizeof(Left),
        piece.along.a);
    Ahead<kRows, kVectors * kLanes * sizeof(Right)> next_b(
        right + channel * sizeof(Right), channel * sizeof(Right), piece.channels * sizeof(Right),
        piece.along.b);
    for (int64_t r = 0; r < rows; ++r, left += piece.along.a, right += piece.along.b) {
      const Left* a = reinterpret_cast<const Left*>(left) + channel;
      const Right* b = reinterpret_cast<const Right*>(right) + channel;
      if constexpr (kWhole) {
        next_a.next();
        next_b.next();
      }
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kWhole) {
          totals[v].add(A::load_vector(a + v * kLanes), B::load_vector(b + v * kLanes));
        } else {
          totals[v].add(A::load_lanes(a + v * kLanes, lanes), B::load_lanes(b + v * kLanes, lanes));
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) store(sums, channel + v * kLanes, totals[v], lanes);
  }

  NEQ_AVX512 static void rows(Sums sums, const Piece& shared) {
    const Piece piece = shared;  // a copy that the stores below cannot be suspected to change
    for (int64_t first = 0; first < piece.length; first += kRows) {
      const int64_t rows = piece.length - first < kRows ? piece.length - first : kRows;
      int64_t c = 0;
      for (; c + 4 * kLanes <= piece.channels; c += 4 * kLanes) {
        add_columns<4, true>(sums, piece, c, first, rows, 0xff);
      }
      for (; c + kLanes <= piece.channels; c += kLanes) {
        add_columns<1, true>(sums, piece, c, first, rows, 0xff);
      }
      if (c < piece.channels) {
        add_columns<1, false>(sums, piece, c, first, rows, first_lanes(piece.channels - c));
      }
    }
  }

  NEQ_AVX512 static void runs(Sums sums, const Piece& shared) {
    const Piece piece = shared;
    const int64_t n = piece.length;
    for (int64_t c = 0; c < piece.channels; ++c) {
      const auto* a = reinterpret_cast<const Left*>(piece.a + c * piece.channel.a);
      const auto* b = reinterpret_cast<const Right*>(piece.b + c * piece.channel.b);
      Vectors totals[4] = {};
      int64_t k = 0;
      for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
        for (int64_t v = 0; v < 4; ++v) {
          totals[v].add(A::load_vector(a + k + v * kLanes), B::load_vector(b + k + v * kLanes));
        }
      }
      for (; k + kLanes <= n; k += kLanes) {
        totals[0].add(A::load_vector(a + k), B::load_vector(b + k));
      }
      if (k < n) {
        const __mmask8 lanes = first_lanes(n - k);
        totals[1].add(A::load_lanes(a + k, lanes), B::load_lanes(b + k, lanes));
      }
      totals[0].add(totals[1]);
      totals[2].add(totals[3]);
      totals[0].add(totals[2]);
      add_lanes(sums, c, totals[0]);
    }
  }

  static void strided(Sums sums, const Piece& piece) {
    scalar_kernels(A::kDtype, B::kDtype).strided(sums, piece);
  }
};

}  // namespace

const Kernels& avx512_kernels(neq_dtype a, neq_dtype b) noexcept {
  return Table<Loops, Float32, Float64, Float16, Brain16>::of(a, b);
}

}  // namespace neq::moments

#endif
