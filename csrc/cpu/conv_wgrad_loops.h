// The loops of conv_wgrad for one instruction set. The file that includes them defines NEQ_LOOP,
// which puts that set on a function, NEQ_LOOP_INLINE likewise, and hands in the elements E of
// vectors_<set>.h, how many registers hold their vectors V, and how many rows the loops are fastest
// with.
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
    typename V::Scalar* const to = sums + r * pitch;
    constexpr int kFours = kColumns / 4 * 4;
#pragma GCC unroll 8
    for (int c = 0; c < kFours; c += 4) {
      V::add_sums(to + c, sum[r][c], sum[r][c + 1], sum[r][c + 2], sum[r][c + 3]);
    }
#pragma GCC unroll 8
    for (int c = kFours; c < kColumns; ++c) to[c] += V::sum(sum[r][c]);
  }
}

// Of few sums there are several, for positions in turn: one multiplication would have to wait for
// the last.
constexpr int turns(int sums) noexcept { return sums < 8 ? 8 / sums : 1; }

// sum[r][v] += row[r] * vector v of the pixel.
template <class E, int kRows, int kVectors>
NEQ_LOOP_INLINE void add_pixel(typename E::Vectors::Vector (&sum)[kRows][kVectors],
                               const char* pixel, const typename E::Vectors::Scalar* row) {
  using V = typename E::Vectors;
  const auto* channels = reinterpret_cast<const typename E::Storage*>(pixel);
  typename V::Vector x[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    x[v] = E::load_vector(channels + v * V::kLanes);
    V::keep(x[v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const typename V::Vector g = V::broadcast(row[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = V::fma(g, x[v], sum[r][v]);
  }
}

template <class E, int kRows, int kVectors>
NEQ_LOOP void accumulate_tile(typename E::Vectors::Scalar* sums, int64_t pitch,
                              const typename E::Vectors::Scalar* rows, int64_t row_pitch,
                              const Run* runs, int64_t run_count, int64_t length, int64_t step) {
  using V = typename E::Vectors;
  constexpr int kTurns = turns(kRows * kVectors);
  typename V::Vector sum[kTurns][kRows][kVectors];
#pragma GCC unroll 8
  for (int t = 0; t < kTurns; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[t][r][v] = V::zero();
    }
  }
  for (int64_t run = 0; run < run_count; ++run) {
    const char* pixel = runs[run].x;
    const auto* row = rows + runs[run].at * row_pitch;
    int64_t k = 0;
    for (; k + kTurns <= length; k += kTurns) {
#pragma GCC unroll 8
      for (int t = 0; t < kTurns; ++t) {
        add_pixel<E>(sum[t], pixel, row);
        pixel += step;
        row += row_pitch;
      }
    }
    for (; k < length; ++k) {
      add_pixel<E>(sum[0], pixel, row);
      pixel += step;
      row += row_pitch;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      auto* const to = sums + r * pitch + v * V::kLanes;
#pragma GCC unroll 8
      for (int t = 1; t < kTurns; ++t) sum[0][r][v] = V::add(sum[0][r][v], sum[t][r][v]);
      V::store(to, V::add(V::load(to), sum[0][r][v]));
    }
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

template <class V>
using LaneTile = void (*)(typename V::Scalar*, int64_t, const typename V::Scalar*, int64_t,
                          const Run*, int64_t, int64_t, int64_t);

template <class E, int kVectors, int... kPlaces>
constexpr std::array<LaneTile<typename E::Vectors>, sizeof...(kPlaces)> lane_tiles(
    std::integer_sequence<int, kPlaces...>) noexcept {
  return {accumulate_tile<E, kPlaces / kVectors + 1, kPlaces % kVectors + 1>...};
}

template <class E, int kRows, int kVectors>
void accumulate(void* sums, int64_t pitch, const void* rows, int64_t row_pitch, int64_t row_count,
                int64_t vector_count, const Run* runs, int64_t run_count, int64_t length,
                int64_t step) {
  using Scalar = typename E::Vectors::Scalar;
  static constexpr auto kTiles =
      lane_tiles<E, kVectors>(std::make_integer_sequence<int, kRows * kVectors>());
  kTiles[(row_count - 1) * kVectors + vector_count - 1](static_cast<Scalar*>(sums), pitch,
                                                        static_cast<const Scalar*>(rows), row_pitch,
                                                        runs, run_count, length, step);
}

template <class E, int kRegisters, int kRows>
constexpr Kernels make_kernels() noexcept {
  static_assert(kRows <= kMostRows);
  using V = typename E::Vectors;
  constexpr int kVectors = columns_beside(kRows, kRegisters);
  Kernels made = {V::kLanes, kRows,
                  {},        multiply<V, kRegisters, kRows>,
                  kVectors,  accumulate<E, kRows, kVectors>};
  for (int64_t i = 0; i < kRows; ++i) made.columns[i] = columns_beside(i + 1, kRegisters);
  return made;
}

template <class E, int kRegisters, int kRows>
inline constexpr Kernels kKernels = make_kernels<E, kRegisters, kRows>();

}  // namespace
}  // namespace neq::conv
