// depthwise_wgrad in two loops, each written once and compiled per instruction set, and what
// surrounds them: depthwise_wgrad.cpp says how they play together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "cpu/cache.h"
#include "cpu/staging.h"
#include "neq/neq.h"

namespace neq::depthwise {

using staging::kMaxLanes;

// Where the next vector lies, in elements of the sums' type.
struct Pitch {
  int64_t unit;
  int64_t row;
  int64_t step;
};

// The vectors of dy that meet vectors of x: units of rows of steps.
struct Walk {
  int64_t units;
  int64_t rows;
  int64_t steps;
  Pitch dy;
  Pitch x;

  int64_t length() const noexcept { return units * rows * steps; }
};

struct Kernels {
  // Elements of a vector, of float or, for fp64, of double; a power of two.
  int64_t lanes;
  // sums[t] += dy * x[t] summed over the walk, for each of `taps` tiles and every lane on its own,
  // and bias += dy unless it is null. At most kMaxTaps of them. The sums in between have the tile's
  // type: keep walks at most kMaxWalk long.
  void (*correlate)(double* sums, double* bias, const void* dy, const void* const* x, int64_t taps,
                    const Walk& walk);
};

inline constexpr int64_t kMaxTaps = 9;
inline constexpr int64_t kMaxWalk = 128;
// Of tiles that are too large for a task each, fewer tasks share fewer.
inline constexpr int64_t kScratchBytes = 64 << 20;

const Kernels& scalar_kernels(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(neq_dtype dtype) noexcept;
#endif

// One way to compute the sums: the work in tasks, each with a tile of its own. partial holds, per
// block of positions and active channel, what `sum` finds there again.
struct Plan {
  const Convolution* convolution;
  const Kernels* kernels;
  const staging::Kernels* staging;
  const char* dy;
  const char* x;
  const char* dy_end;
  const char* x_end;
  const int32_t* index;
  int64_t count;    // active channels; all of the list until its padding is known
  int64_t element;  // bytes of a tensor's
  int64_t scalar;   // and of a tile's
  int64_t blocks;
  int64_t tasks;
  int64_t tile_bytes;
  double* partial;
  char* tiles;  // of task t at t * tile_bytes, aligned to a cache line
};

// Bytes as whole cache lines, an odd number of them: neighbours a power of two apart would share
// few places in a cache.
inline int64_t odd_lines(int64_t bytes) noexcept {
  return (divide_up(bytes, kCacheLine) | 1) * kCacheLine;
}

}  // namespace neq::depthwise
