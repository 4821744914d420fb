// The loop of conv_wgrad for one instruction set. The file that includes it defines NEQ_LOOP, which
// puts that set on a function, and hands in vectors V: Scalar, Vector, kLanes, kRegisters (of
// them), kRows (that it is fastest with), load, zero, fma(a, b, c) = a * b + c, sum(Vector), of its
// lanes, and keep, which makes the compiler hold a vector in a register.
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "conv_wgrad.h"

namespace neq::conv {
namespace {

// Registers hold all sums, a vector per column and one of a row.
constexpr int64_t columns_beside(int64_t rows, int64_t registers) noexcept {
  return std::min(kMostColumns, (registers - 1) / (rows + 1));
}

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
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sum[r][c] = V::zero();
  }
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) column[c] = static_cast<const Scalar*>(columns[c]);
  for (int64_t k = 0; k < length; k += V::kLanes) {
    typename V::Vector x[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      x[c] = V::load(column[c] + k);
      V::keep(x[c]);  // or it is loaded again for every row, from an address that is rarely aligned
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      typename V::Vector g = V::load(row[r] + k);
      V::keep(g);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) sum[r][c] = V::fma(g, x[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sums[r * pitch + c] += V::sum(sum[r][c]);
  }
}

template <class V>
using Tile = void (*)(typename V::Scalar*, int64_t, const void* const*, const void* const*,
                      int64_t);

// The tile for place `kPlace` of a table of all rows and columns there may be.
template <class V, int kRegisters, int kPlace>
constexpr Tile<V> tile() noexcept {
  constexpr int kRows = kPlace / kMostColumns + 1;
  constexpr int kColumns = kPlace % kMostColumns + 1;
  if constexpr (kColumns > columns_beside(kRows, kRegisters)) return nullptr;
  return multiply_tile<V, kRows, kColumns>;
}

template <class V, int kRegisters, int... kPlaces>
constexpr std::array<Tile<V>, sizeof...(kPlaces)> tiles(
    std::integer_sequence<int, kPlaces...>) noexcept {
  return {tile<V, kRegisters, kPlaces>()...};
}

template <class V, int kRegisters, int kRows>
void multiply(void* sums, int64_t pitch, const void* const* rows, int64_t row_count,
              const void* const* columns, int64_t column_count, int64_t length) {
  static constexpr auto kTiles =
      tiles<V, kRegisters>(std::make_integer_sequence<int, kRows * kMostColumns>());
  kTiles[(row_count - 1) * kMostColumns + column_count - 1](static_cast<typename V::Scalar*>(sums),
                                                            pitch, rows, columns, length);
}

template <class V, int kRegisters, int kRows>
constexpr Kernels kernels() noexcept {
  static_assert(kRows <= kMostRows);
  Kernels found = {kRows, {}, multiply<V, kRegisters, kRows>};
  for (int64_t i = 0; i < kRows; ++i) found.columns[i] = columns_beside(i + 1, kRegisters);
  return found;
}

// Sums of `V` for float, of `W` for double.
template <class V, class W, int kRegisters, int kRows>
const Kernels& kernels_of(neq_dtype dtype) noexcept {
  static constexpr Kernels kFloats = kernels<V, kRegisters, kRows>();
  static constexpr Kernels kDoubles = kernels<W, kRegisters, kRows>();
  return dtype == NEQ_F64 ? kDoubles : kFloats;
}

}  // namespace
}  // namespace neq::conv
