// The vectors of depthwise_wgrad for AVX2; its loops are in depthwise_wgrad_loops.h.
#include "depthwise_wgrad.h"

#if defined(__x86_64__)

#include "element.h"
#include "isa.h"

#define NEQ_LOOP NEQ_AVX2
#define NEQ_LOOP_INLINE NEQ_AVX2_INLINE
#include "depthwise_wgrad_loops.h"

namespace neq::depthwise {
namespace {

struct Floats {
  using Scalar = float;
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;
  NEQ_AVX2_INLINE static __m256 load(const float* from) { return _mm256_loadu_ps(from); }
  NEQ_AVX2_INLINE static void store(float* to, __m256 value) { _mm256_storeu_ps(to, value); }
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
};

struct Doubles {
  using Scalar = double;
  using Vector = __m256d;
  static constexpr int64_t kLanes = 4;
  NEQ_AVX2_INLINE static __m256d load(const double* from) { return _mm256_loadu_pd(from); }
  NEQ_AVX2_INLINE static void store(double* to, __m256d value) { _mm256_storeu_pd(to, value); }
  NEQ_AVX2_INLINE static __m256d zero() { return _mm256_setzero_pd(); }
  NEQ_AVX2_INLINE static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
  NEQ_AVX2_INLINE static __m256d fma(__m256d a, __m256d b, __m256d c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  NEQ_AVX2_INLINE static void add_to(double* sums, __m256d value) {
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), value));
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

// Eight vectors as the rows of a square, and its columns.
NEQ_AVX2_INLINE void turn_square(__m256* rows) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0b01000100);
    b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0b11101110);
    b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0b01000100);
    b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0b11101110);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

NEQ_AVX2_INLINE void turn_square(__m256d* rows) {
  const __m256d a = _mm256_unpacklo_pd(rows[0], rows[1]);
  const __m256d b = _mm256_unpackhi_pd(rows[0], rows[1]);
  const __m256d c = _mm256_unpacklo_pd(rows[2], rows[3]);
  const __m256d d = _mm256_unpackhi_pd(rows[2], rows[3]);
  rows[0] = _mm256_permute2f128_pd(a, c, 0x20);
  rows[1] = _mm256_permute2f128_pd(b, d, 0x20);
  rows[2] = _mm256_permute2f128_pd(a, c, 0x31);
  rows[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

// An element that knows how to load a vector, with squares on top.
template <class E>
struct Square : E {
  using Turned = Square;
  static constexpr int64_t kSide = E::Vectors::kLanes;
  NEQ_AVX2_INLINE static void turn(typename E::Vectors::Scalar* to, int64_t pitch,
                                   const typename E::Storage* const* from, int64_t k,
                                   int64_t length) {
    typename E::Vectors::Vector rows[kSide];
#pragma GCC unroll 8
    for (int64_t side = 0; side < kSide; ++side) rows[side] = E::load_vector(from[side] + k);
    turn_square(rows);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kSide; ++i) {
      if (i < length) E::Vectors::store(to + i * pitch, rows[i]);
    }
  }
};

}  // namespace

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Square<Float64>>;
    case NEQ_F16:
      return kKernels<Square<Float16>>;
    case NEQ_BF16:
      return kKernels<Square<Brain16>>;
    case NEQ_F32:
      break;
  }
  return kKernels<Square<Float32>>;
}

}  // namespace neq::depthwise

#endif
