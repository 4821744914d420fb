// The two loops of conv_wgrad, each written once and compiled per instruction set: conv_wgrad.cpp
// says what they are for.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::conv {

// At most this many rows and columns at a time.
inline constexpr int64_t kMostRows = 6;
inline constexpr int64_t kMostColumns = 8;

// Neighbouring pixels of x, and which position of dy meets the first.
struct Run {
  const char* x;
  int64_t at;
};

struct Kernels {
  // Elements of a vector, of float or, for fp64, of double; a power of two.
  int64_t lanes;
  // How many rows fit registers, and with so many rows (less one) how many columns.
  int64_t rows;
  int64_t columns[kMostRows];
  // sums[r * pitch + c] += sum over k < length of rows[r][k] * columns[c][k]: of floats, or of
  // doubles for fp64. `length` is a multiple of kStep; no more rows and columns than fit.
  void (*multiply)(void* sums, int64_t pitch, const void* const* rows, int64_t row_count,
                   const void* const* columns, int64_t column_count, int64_t length);
  // Vectors of x that fit registers beside any number of rows.
  int64_t vectors;
  // sums[r * pitch + lane] += sum over runs and k < length of rows[(run.at + k) * row_pitch + r] *
  // x[lane], of the elements at run.x + k * step bytes; whole vectors of them.
  void (*accumulate)(void* sums, int64_t pitch, const void* rows, int64_t row_pitch,
                     int64_t row_count, int64_t vector_count, const Run* runs, int64_t run_count,
                     int64_t length, int64_t step);
};

inline constexpr int64_t kStep = 16;

const Kernels& scalar_kernels(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(neq_dtype dtype) noexcept;
#endif

}  // namespace neq::conv
