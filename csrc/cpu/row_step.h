// The loops of row_sgd and row_adamw, written once for every instruction set (row_step_loops.h).
// Which rows they go over, and on which thread, is row_step.cpp's business and the same for all.
#pragma once

#include <cstdint>

#include "../row_step.h"
#include "neq/neq.h"

namespace neq::rows {

// Neighbouring elements, in every tensor at the same distance from its first one.
struct Run {
  int64_t offset;
  int64_t elements;
};

struct Kernels {
  // Steps `count` runs; at[t] is where tensor t starts.
  void (*runs)(const Numbers& numbers, char* const* at, const Run* runs, int64_t count);
  // Steps the n elements from `at` on whose bit i % 64 in mask[i / 64] is set, no others.
  void (*masked)(const Numbers& numbers, char* const* at, const uint64_t* mask, int64_t n);
};

const Kernels& scalar_kernels(Formula formula, neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(Formula formula, neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(Formula formula, neq_dtype dtype) noexcept;
#endif

int64_t scratch_bytes(const neq_row_parameter* parameters, int64_t count) noexcept;

// Steps all parameters: numbers[i] are those of parameters[i]. Everything but the index is checked.
neq_status step(Formula formula, const neq_row_parameter* parameters, int64_t count,
                Numbers (*numbers)(const void* options, const neq_row_parameter& parameter),
                const void* options, neq_scratch scratch, const neq_parallel* parallel) noexcept;

}  // namespace neq::rows
