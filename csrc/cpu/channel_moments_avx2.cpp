// The AVX2 loops of channel_moments: four elements at a time, widened to fp64.
#include "channel_moments.h"

#if defined(__x86_64__)

#include "channel_moments_prefetch.h"
#include "channel_moments_table.h"
#include "element.h"
#include "isa.h"

namespace neq::moments {
namespace {

constexpr int64_t kLanes = 4;
// Rows that share a visit to their sums: enough to hide it, few enough that the processor's own
// prefetching follows each of them.
constexpr int64_t kRows = 4;

struct Float32 : Float {
  static constexpr neq_dtype kDtype = NEQ_F32;
  NEQ_AVX2_INLINE static __m256d load_vector(const float* from) {
    return _mm256_cvtps_pd(_mm_loadu_ps(from));
  }
};

struct Float64 : Double {
  static constexpr neq_dtype kDtype = NEQ_F64;
  NEQ_AVX2_INLINE static __m256d load_vector(const double* from) { return _mm256_loadu_pd(from); }
};

struct Float16 : Half {
  static constexpr neq_dtype kDtype = NEQ_F16;
  NEQ_AVX2_INLINE static __m256d load_vector(const uint16_t* from) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtps_pd(_mm_cvtph_ps(bits));
  }
};

struct Brain16 : BFloat16 {
  static constexpr neq_dtype kDtype = NEQ_BF16;
  NEQ_AVX2_INLINE static __m256d load_vector(const uint16_t* from) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16)));
  }
};

// Read from place n on: a mask of four lanes that keeps the last n.
constexpr int64_t kLastLanes[8] = {0, 0, 0, 0, -1, -1, -1, -1};

NEQ_AVX2_INLINE __m256d keep_last(__m256d value, int64_t n) {
  return _mm256_and_pd(value, _mm256_loadu_pd(reinterpret_cast<const double*>(kLastLanes + n)));
}

struct Vectors {
  __m256d ab;
  __m256d aa;
  __m256d bb;

  NEQ_AVX2_INLINE void add(__m256d a, __m256d b) {
    ab = _mm256_fmadd_pd(a, b, ab);
    aa = _mm256_fmadd_pd(a, a, aa);
    bb = _mm256_fmadd_pd(b, b, bb);
  }

  NEQ_AVX2_INLINE void add(const Vectors& other) {
    ab = _mm256_add_pd(ab, other.ab);
    aa = _mm256_add_pd(aa, other.aa);
    bb = _mm256_add_pd(bb, other.bb);
  }
};

NEQ_AVX2_INLINE Vectors load(Sums sums, int64_t channel) {
  const double* at = sums.data + channel;
  return {_mm256_loadu_pd(at), _mm256_loadu_pd(at + sums.distance),
          _mm256_loadu_pd(at + 2 * sums.distance)};
}

NEQ_AVX2_INLINE void store(Sums sums, int64_t channel, const Vectors& vectors) {
  double* at = sums.data + channel;
  _mm256_storeu_pd(at, vectors.ab);
  _mm256_storeu_pd(at + sums.distance, vectors.aa);
  _mm256_storeu_pd(at + 2 * sums.distance, vectors.bb);
}

// The lanes of each of the three, added up.
NEQ_AVX2_INLINE void add_lanes(Sums sums, int64_t channel, const Vectors& v) {
  const __m256d pairs = _mm256_hadd_pd(v.ab, v.aa);  // ab01, aa01, ab23, aa23
  const __m128d both = _mm256_castpd256_pd128(pairs) + _mm256_extractf128_pd(pairs, 1);
  const __m128d last = _mm256_castpd256_pd128(v.bb) + _mm256_extractf128_pd(v.bb, 1);
  double* at = sums.data + channel;
  at[0] += _mm_cvtsd_f64(both);
  at[sums.distance] += _mm_cvtsd_f64(_mm_unpackhi_pd(both, both));
  at[2 * sums.distance] += _mm_cvtsd_f64(last) + _mm_cvtsd_f64(_mm_unpackhi_pd(last, last));
}

template <class A, class B>
struct Loops {
  using Left = typename A::Storage;
  using Right = typename B::Storage;

  static const Left* left(const Piece& piece, int64_t channel, int64_t k) {
    return reinterpret_cast<const Left*>(piece.a + k * piece.along.a) + channel;
  }
  static const Right* right(const Piece& piece, int64_t channel, int64_t k) {
    return reinterpret_cast<const Right*>(piece.b + k * piece.along.b) + channel;
  }

  // kVectors vectors of channels from `channel` on, in the rows from `first` on.
  template <int kVectors>
  NEQ_AVX2_INLINE static void add_columns(Sums sums, const Piece& piece, int64_t channel,
                                          int64_t first, int64_t rows) {
    Vectors totals[kVectors];
    for (int v = 0; v < kVectors; ++v) totals[v] = load(sums, channel + v * kLanes);
    const Left* a = left(piece, channel, first);
    const Right* b = right(piece, channel, first);
    Ahead<kRows, kVectors * kLanes * sizeof(Left)> next_a(
        reinterpret_cast<const char*>(a), channel * sizeof(Left), piece.channels * sizeof(Left),
        piece.along.a);
    Ahead<kRows, kVectors * kLanes * sizeof(Right)> next_b(
        reinterpret_cast<const char*>(b), channel * sizeof(Right), piece.channels * sizeof(Right),
        piece.along.b);
    for (int64_t r = 0; r < rows; ++r) {
      next_a.next();
      next_b.next();
      for (int v = 0; v < kVectors; ++v) {
        totals[v].add(A::load_vector(a + v * kLanes), B::load_vector(b + v * kLanes));
      }
      a = reinterpret_cast<const Left*>(reinterpret_cast<const char*>(a) + piece.along.a);
      b = reinterpret_cast<const Right*>(reinterpret_cast<const char*>(b) + piece.along.b);
    }
    for (int v = 0; v < kVectors; ++v) store(sums, channel + v * kLanes, totals[v]);
  }

  // The last `left_over` channels, by a vector that overlaps the one before.
  NEQ_AVX2_INLINE static void add_last_columns(Sums sums, const Piece& piece, int64_t left_over,
                                               int64_t first, int64_t rows) {
    const int64_t channel = piece.channels - kLanes;
    Vectors total = load(sums, channel);
    for (int64_t r = first; r < first + rows; ++r) {
      total.add(keep_last(A::load_vector(left(piece, channel, r)), left_over),
                keep_last(B::load_vector(right(piece, channel, r)), left_over));
    }
    store(sums, channel, total);
  }

  NEQ_AVX2 static void rows(Sums sums, const Piece& shared) {
    const Piece piece = shared;  // a copy that the stores below cannot be suspected to change
    if (piece.channels < kLanes) return scalar_kernels(A::kDtype, B::kDtype).rows(sums, piece);
    for (int64_t first = 0; first < piece.length; first += kRows) {
      const int64_t rows = piece.length - first < kRows ? piece.length - first : kRows;
      int64_t c = 0;
      for (; c + 4 * kLanes <= piece.channels; c += 4 * kLanes) {
        add_columns<4>(sums, piece, c, first, rows);
      }
      for (; c + kLanes <= piece.channels; c += kLanes) {
        add_columns<1>(sums, piece, c, first, rows);
      }
      if (c < piece.channels) add_last_columns(sums, piece, piece.channels - c, first, rows);
    }
  }

  NEQ_AVX2 static void runs(Sums sums, const Piece& shared) {
    const Piece piece = shared;
    const int64_t n = piece.length;
    if (n < kLanes) return scalar_kernels(A::kDtype, B::kDtype).strided(sums, piece);
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
        // The last vector overlaps the one before it; lanes already counted count as zero.
        totals[1].add(keep_last(A::load_vector(a + n - kLanes), n - k),
                      keep_last(B::load_vector(b + n - kLanes), n - k));
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

const Kernels& avx2_kernels(neq_dtype a, neq_dtype b) noexcept {
  return Table<Loops, Float32, Float64, Float16, Brain16>::of(a, b);
}

}  // namespace neq::moments

#endif
