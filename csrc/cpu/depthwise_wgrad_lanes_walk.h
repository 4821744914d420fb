// How depthwise_wgrad reads vectors of neighbouring channels: walks along the rows of dy, each
// vector of which meets, per tap across, a vector of the rows of x above and below. The taps along
// the row meet the last few vectors of dy, kept in registers as all sums are from the first row of
// a unit to its last: maps are small, and sums that come and go with every row take as long as it.
#pragma once

#include "depthwise_wgrad_walk.h"

namespace neq::depthwise {

// Walked side by side, at most: twice the memory on the way for the same steps, and lines of it
// that are neighbours.
inline constexpr int64_t kMaxBeside = 2;

// Distances in elements.
struct LanesWalk {
  char* sums[kMaxBeside];  // of the vectors side by side
  LaneRange lanes[kMaxBeside];
  const char* dy;  // of the first row
  const char* x;   // of row 0, position `begin`
  int64_t beside;  // from the first vector to the second
  // To what is read after all of this, and fetched into the cache meanwhile, from dy's first
  // vector, and from x's of the first tap across, were all of them in x.
  int64_t dy_ahead[kMaxBeside];
  int64_t x_ahead[kMaxBeside];
  int64_t samples;
  int64_t dy_batch;
  int64_t x_batch;
  int64_t lines;  // rows of dy
  int64_t dy_line;
  int64_t top;  // of x's rows, the one that the first tap across reads for the first of dy's
  int64_t down;
  int64_t dilation;
  int64_t rows;  // that x has
  int64_t x_row;
  int64_t steps;  // vectors of dy in a row
  int64_t dy_step;
  int64_t begin;  // positions of x along the row, kStride for each of dy's; there are `count`
  int64_t count;
  int64_t x_step;
  int64_t sums_across;
  int64_t sums_along;
  int64_t bias;  // to its sum, or 0 where another walk sees to it
  Readable dy_memory;
  Readable x_memory;
};

// sums[tap][lane] += dy * x, sums[bias][lane] += dy, of float (double).
using LanesLoop = void (*)(const LanesWalk& walk);

// Of as many vectors side by side; null where registers have no room for them.
struct LanesLoops {
  LanesLoop beside[kMaxBeside];
};

struct LanesKernels {
  int64_t lanes;
  int64_t beside;  // that registers have room for
  LanesLoops loops[kMaxAcross][kMaxAlong][2];
  LanesLoop loop(int64_t across, int64_t along, int64_t stride, int64_t beside) const noexcept {
    return loops[across - 1][along - 1][stride - 1].beside[beside - 1];
  }
  // totals[k][lane] += sums[k][lane]; sums[k] = 0.
  void (*add_each)(double* totals, void* sums, int64_t n);
};

const LanesKernels& scalar_lanes(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const LanesKernels& avx2_lanes(neq_dtype dtype) noexcept;
const LanesKernels& avx512_lanes(neq_dtype dtype) noexcept;
#endif

// Those of the instruction set in use.
const LanesKernels& best_lanes(neq_dtype dtype) noexcept;

}  // namespace neq::depthwise
