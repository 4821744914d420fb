// Parts of tensors copied into tiles that stay in the cache, as floats (doubles) and with the zeros
// of a padding around, so that one loop without borders serves every type, stride and window.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::staging {

// Rows of a tensor, units of them; strides in elements. From `readable` on, memory may not be read.
struct Rows {
  const char* source;
  int64_t unit_stride;
  int64_t row_stride;
  int64_t stride;
  int64_t units;
  int64_t rows;
  int64_t length;
  const char* readable;
};

// Where in a tile they go, and how many zeros follow each row, and each unit on top of that.
struct Place {
  int64_t unit_pitch;
  int64_t row_pitch;
  int64_t row_zeros;
  int64_t unit_zeros;
};

struct Kernels {
  // target[u][r][k] = source[u][r][k], as float (double), in this order, with zeros behind; may go
  // on writing for less than a vector after those.
  void (*copy)(void* target, const Place& place, const Rows& rows);
  // target[k * pitch + lane] = source[k] at offsets[lane] bytes, as float (double), for k < length
  // and lane < count; may write whole vectors of lanes. From `readable` on, as above.
  void (*transpose)(void* target, int64_t pitch, const char* source, const int64_t* offsets,
                    int64_t count, int64_t length, const char* readable);
};

// Elements of the largest vector there is.
inline constexpr int64_t kMaxLanes = 16;

const Kernels& scalar_kernels(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(neq_dtype dtype) noexcept;
#endif

// Those of the instruction set in use.
const Kernels& best_kernels(neq_dtype dtype) noexcept;

}  // namespace neq::staging
