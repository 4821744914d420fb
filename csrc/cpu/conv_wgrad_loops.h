// The loop of conv_wgrad for one instruction set. The file that includes it defines NEQ_LOOP, which
// puts that set on a function, and hands in vectors V: Scalar, Vector, kLanes, load, zero,
// fma(a, b, c) = a * b + c and sum(Vector), of its lanes.
#include <cstdint>

#include "conv_wgrad.h"

namespace neq::conv {
namespace {

template <class V, int kRows, int kColumns>
NEQ_LOOP void multiply_tile(typename V::Scalar* sums, int64_t pitch, const void* const* rows,
                            const void* const* columns, int64_t length) {
  using Scalar = typename V::Scalar;
  const Scalar* row[kRows];
  const Scalar* column[kColumns];
  typename V::Vector sum[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = static_cast<const Scalar*>(rows[r]);
#pragma GCC unroll 3
    for (int c = 0; c < kColumns; ++c) sum[r][c] = V::zero();
  }
#pragma GCC unroll 3
  for (int c = 0; c < kColumns; ++c) column[c] = static_cast<const Scalar*>(columns[c]);
  for (int64_t k = 0; k < length; k += V::kLanes) {
    typename V::Vector x[kColumns];
#pragma GCC unroll 3
    for (int c = 0; c < kColumns; ++c) x[c] = V::load(column[c] + k);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename V::Vector g = V::load(row[r] + k);
#pragma GCC unroll 3
      for (int c = 0; c < kColumns; ++c) sum[r][c] = V::fma(g, x[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int c = 0; c < kColumns; ++c) sums[r * pitch + c] += V::sum(sum[r][c]);
  }
}

template <class V, int kRows>
void multiply_rows(typename V::Scalar* sums, int64_t pitch, const void* const* rows,
                   const void* const* columns, int64_t column_count, int64_t length) {
  if (column_count == 3) return multiply_tile<V, kRows, 3>(sums, pitch, rows, columns, length);
  if (column_count == 2) return multiply_tile<V, kRows, 2>(sums, pitch, rows, columns, length);
  multiply_tile<V, kRows, 1>(sums, pitch, rows, columns, length);
}

template <class V>
void multiply(void* sums, int64_t pitch, const void* const* rows, int64_t row_count,
              const void* const* columns, int64_t column_count, int64_t length) {
  static_assert(kMostRows == 8 && kMostColumns == 3);
  constexpr void (*kByRows[])(typename V::Scalar*, int64_t, const void* const*, const void* const*,
                              int64_t, int64_t) = {
      multiply_rows<V, 1>, multiply_rows<V, 2>, multiply_rows<V, 3>, multiply_rows<V, 4>,
      multiply_rows<V, 5>, multiply_rows<V, 6>, multiply_rows<V, 7>, multiply_rows<V, 8>};
  kByRows[row_count - 1](static_cast<typename V::Scalar*>(sums), pitch, rows, columns, column_count,
                         length);
}

// Sums of `V` for float, of `W` for double.
template <class V, class W>
const Kernels& kernels_of(neq_dtype dtype, int64_t rows) noexcept {
  static const Kernels floats = {rows, multiply<V>};
  static const Kernels doubles = {rows, multiply<W>};
  return dtype == NEQ_F64 ? doubles : floats;
}

}  // namespace
}  // namespace neq::conv
