// What every function of the C ABI asks of the tensors and the scratch it is given.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq {

inline int64_t divide_up(int64_t a, int64_t b) noexcept { return (a + b - 1) / b; }

// Where block `block` of `blocks` starts in [0, total).
inline int64_t block_start(int64_t block, int64_t blocks, int64_t total) noexcept {
  const int64_t larger = total % blocks;
  return total / blocks * block + (block < larger ? block : larger);
}

inline int64_t element_bytes(int32_t dtype) noexcept {
  return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2;
}

// A dtype and a shape there are, offsets that fit 64 bits, data unless it is empty. Strides of 0
// are for inputs only: see check_own_memory.
neq_status check_tensor(const char* name, const neq_tensor* tensor) noexcept;

// Nothing of an output may be written twice by way of a stride of 0.
neq_status check_own_memory(const char* name, const neq_tensor& tensor) noexcept;

// At least `bytes` of it, where a double may lie.
neq_status check_scratch(neq_scratch scratch, int64_t bytes) noexcept;

// Behind its last element; where an empty one lies.
char* end_of(const neq_tensor& tensor) noexcept;

}  // namespace neq
