// The one loop of conv_wgrad, written once and compiled per instruction set: conv_wgrad.cpp says
// what it is for.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::conv {

// At most this many rows and columns at a time: their sums, and what is multiplied, fit registers.
inline constexpr int64_t kMostRows = 8;
inline constexpr int64_t kMostColumns = 3;

struct Kernels {
  int64_t rows;  // how many of them the loop is fastest with
  // sums[r * pitch + c] += sum over k < length of rows[r][k] * columns[c][k]: of floats, or of
  // doubles for fp64. `length` is a multiple of kStep.
  void (*multiply)(void* sums, int64_t pitch, const void* const* rows, int64_t row_count,
                   const void* const* columns, int64_t column_count, int64_t length);
};

inline constexpr int64_t kStep = 16;

const Kernels& scalar_kernels(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(neq_dtype dtype) noexcept;
#endif

}  // namespace neq::conv
