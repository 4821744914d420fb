// The loops of staging for AVX2.
#if defined(__x86_64__)

#include "vectors_avx2.h"

#define NEQ_LOOP NEQ_AVX2
#define NEQ_LOOP_INLINE NEQ_AVX2_INLINE
#include "staging_loops.h"

namespace neq::staging {
namespace {

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

template <class E>
constexpr Kernels kKernels = {copy<E>, transpose<Square<E>>};

}  // namespace

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Float64>;
    case NEQ_F16:
      return kKernels<Float16>;
    case NEQ_BF16:
      return kKernels<Brain16>;
    case NEQ_F32:
      break;
  }
  return kKernels<Float32>;
}

}  // namespace neq::staging

#endif
