// How depthwise_wgrad reads tensors where they are: vectors of dy along one of the two axes, each
// of which meets vectors of x. A walk goes `along` one axis, whose taps meet the last few vectors
// of dy, kept in registers; the taps of the other axis, `across`, are as many loads of x. So every
// vector of dy is loaded once, and every vector of x once per tap across.
//
// With vectors along rows (NCHW), a walk goes down the columns and a tap across is a step to the
// next element: those are the loops here. With vectors of channels (channels_last), it goes along
// rows, and a tap across is the next row: depthwise_wgrad_lanes_walk.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "lanes.h"
#include "neq/neq.h"
#include "tensor.h"

namespace neq::depthwise {

inline constexpr int64_t kMaxAcross = 3;
inline constexpr int64_t kMaxAlong = 3;
// Sums are of the tensor's type, or float, for at most so many vectors: then they become doubles.
inline constexpr int64_t kMaxWalk = 256;

// Positions of x along an axis, `step` apart, from the one on that a tap of an output reads. Those
// from `begin` on exist, `count` of them.
struct Meeting {
  int64_t begin;
  int64_t count;
  int64_t first;  // where the first of these is in x; 0 if there is none

  static Meeting of(const Axis& axis, int64_t output, int64_t tap, int64_t step) noexcept;
  // Of the first `positions` alone.
  Meeting within(int64_t positions) const noexcept {
    return {begin, std::clamp<int64_t>(positions - begin, 0, count), first};
  }
};

// The taps of an axis that a walk takes at once.
struct TapChunks {
  int64_t taps;
  int64_t chunks;

  static TapChunks of(const Axis& axis, int64_t most) noexcept;
  int64_t start(int64_t chunk) const noexcept { return block_start(chunk, chunks, taps); }
};

// How a walk goes along an axis: taps share loads of x where they are neighbours, and outputs one
// or two apart.
struct Along {
  int64_t taps;    // at once, at most
  int64_t step;    // in x, from one position to the next
  int64_t stride;  // positions per output

  static Along of(const Axis& axis) noexcept;
  // Where `outputs` from the given one on meet x, with that many taps from `tap` on.
  Meeting meeting(const Axis& axis, int64_t output, int64_t outputs, int64_t tap,
                  int64_t tap_count) const noexcept {
    return Meeting::of(axis, output, tap, step).within((outputs - 1) * stride + tap_count);
  }
};

// Distances in elements.
struct Walk {
  const char* dy;
  const char* x;  // of position `begin`
  int64_t lines;  // walks of the same kind, summed
  int64_t dy_line;
  int64_t x_line;
  int64_t steps;  // vectors of dy in each
  int64_t dy_step;
  int64_t begin;  // positions of x along the walk, kStride for each of dy's; there are `count`
  int64_t count;
  int64_t x_step;
  int64_t x_across;  // from one tap across to the next
  int64_t sums_across;
  int64_t sums_along;
  LaneRange dy_lanes;
  LaneRange x_lanes[kMaxAcross];
  Readable dy_memory;
  Readable x_memory;
  // To what is read later, and fetched into the cache meanwhile, from dy's vector and from x's.
  int64_t dy_ahead;
  int64_t x_ahead;
};

// sums[tap][lane] += dy * x, bias[lane] += dy unless it is null, of float (double).
using WalkLoop = void (*)(void* sums, void* bias, const Walk& walk);

// Where the elements of x in a vector are neighbours, and where they are every other one.
struct WalkLoops {
  WalkLoop step_1;
  WalkLoop step_2;
};

struct WalkKernels {
  int64_t lanes;
  WalkLoops loops[kMaxAcross][kMaxAlong][2];
  WalkLoop loop(int64_t across, int64_t along, int64_t stride, int64_t step) const noexcept {
    const WalkLoops& both = loops[across - 1][along - 1][stride - 1];
    return step == 1 ? both.step_1 : both.step_2;
  }
  // totals[k] += the sum over all lanes of sums[k]; sums[k] = 0.
  void (*add_lanes)(double* totals, void* sums, int64_t n);
};

const WalkKernels& scalar_walks(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const WalkKernels& avx2_walks(neq_dtype dtype) noexcept;
const WalkKernels& avx512_walks(neq_dtype dtype) noexcept;
#endif

// Those of the instruction set in use.
const WalkKernels& best_walks(neq_dtype dtype) noexcept;

}  // namespace neq::depthwise
