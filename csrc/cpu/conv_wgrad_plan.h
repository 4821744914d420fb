// What a call of conv_wgrad means on a CPU: how x and dy are staged, and how the work is cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cache.h"
#include "conv_wgrad.h"
#include "convolution.h"
#include "staging.h"

namespace neq::conv {

inline constexpr int64_t kMostPhases = 64;
// Pieces taken at once, at most, and positions of all of them: so few that the pixels they meet
// stay in a first cache, and that rounding does not build up, so many that sums are rarely written.
inline constexpr int64_t kPieces = 128;
inline constexpr int64_t kBiasColumns = 2;

// Which steps of a phase lie in x, and the first of them in it.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t first;

  bool empty() const noexcept { return begin == end; }

  static Range of(const Axis& axis, int64_t phase, int64_t steps) noexcept {
    const int64_t before = axis.padding - phase;  // steps * stride - before is the place in x
    const int64_t begin = before > 0 ? std::min(divide_up(before, axis.stride), steps) : 0;
    const int64_t last = axis.in + before;
    const int64_t end = last <= 0 ? 0 : std::min(divide_up(last, axis.stride), steps);
    return {begin, std::max(begin, end), begin * axis.stride - before};
  }
};

// One spatial dimension: weight r meets phase r * dilation % stride of x, `offset` steps on.
struct Steps {
  int64_t phases;  // all that weights may meet
  int64_t reach;   // the largest offset
  int64_t count;   // steps that outputs meet: as many as there are of these, and the reach
  int64_t pitch;   // steps staged; later ones are those before x in the next row (or sample)
  int64_t beyond;  // steps that may be read or written past these

  static Steps of(const Axis& axis) noexcept {
    Steps steps{};
    steps.phases = std::min(axis.stride, (axis.kernel - 1) * axis.dilation + 1);
    steps.reach = (axis.kernel - 1) * axis.dilation / axis.stride;
    steps.count = axis.out + steps.reach;
    // Rows share the zeros between them: those behind one are those before the next. A weight reads
    // no more steps behind x than before it, and rounds to no more than phase 0 does.
    steps.pitch = axis.out;
    steps.beyond = steps.reach;
    for (int64_t phase = 0; phase < std::min(steps.phases, kMostPhases); ++phase) {
      const Range range = Range::of(axis, phase, steps.count);
      if (range.empty()) continue;
      steps.beyond = std::max(steps.beyond, range.begin);
      steps.pitch = std::max(steps.pitch, range.end);
    }
    return steps;
  }
};

struct Call {
  Convolution convolution;
  const Kernels* kernels;
  const staging::Kernels* staging;
  int64_t element;      // bytes of a tensor's
  int64_t scalar;       // and of a staged one
  int64_t width;        // rows of dw
  int64_t count;        // of them active
  int64_t columns;      // of a row of sums: the weights, and the bias
  int64_t per_tap;      // columns from one weight of a channel to the next
  int64_t per_channel;  // and from one channel to the next
  int64_t blocks;       // of positions
  int64_t row_blocks;   // of the list
  int64_t channel_blocks;
  int64_t tile_bytes;   // of each task
  int64_t rows_staged;  // of dy, beforehand, for all tasks; 0: each task stages its own
  void (*run)(const Call&, int64_t task, char* tile);

  // Where x is staged.
  Steps steps[2];
  int64_t plane;     // staged elements of a sample's channel
  int64_t samples;   // staged at a time: a chunk
  int64_t chunks;    // of each block, at most
  int64_t length;    // of a product
  int64_t row;       // staged elements from one channel of dy to the next
  int64_t column;    // and from one phase of a channel of x to the next
  int64_t channels;  // of x, staged at a time

  // Where it is not: output positions are taken in pieces of rows.
  int64_t pieces_of_row;
  int64_t pieces;
  int64_t pieces_at_once;  // one, unless they are whole rows
  int64_t positions;       // of these, at most

  const char* dy;
  const char* x;
  const char* dy_end;
  const char* x_end;
  const int32_t* index;
  int64_t* offsets;  // of each weight of a channel: bytes from where the channel was staged
  char* rows;        // of dy, staged beforehand: [blocks, chunks, width, row]
  char* partial;     // [blocks, width, columns]
  char* tiles;

  // Task t: block t / parts() of the positions, and in them a block of rows and one of channels.
  int64_t parts() const noexcept { return row_blocks * channel_blocks; }
  int64_t tasks() const noexcept { return blocks * parts(); }
  int64_t phases() const noexcept { return steps[0].phases * steps[1].phases; }
  char* sums(int64_t block, int64_t i, int64_t column) const noexcept {
    return partial + ((block * width + i) * columns + column) * scalar;
  }
  // A bias gradient is all of dy's channel, and summed as a double: in the last two places of a
  // row.
  double bias(int64_t block, int64_t i) const noexcept {
    double sum;
    std::memcpy(&sum, sums(block, i, columns - kBiasColumns), sizeof sum);
    return sum;
  }
  void set_bias(int64_t block, int64_t i, double sum) const noexcept {
    std::memcpy(sums(block, i, columns - kBiasColumns), &sum, sizeof sum);
  }
  int64_t offset_bytes() const noexcept {
    return round_up(convolution.taps() * int64_t{sizeof(int64_t)}, kCacheLine);
  }
  int64_t partial_bytes() const noexcept {
    return round_up(blocks * width * columns * scalar, kCacheLine);
  }
  int64_t rows_bytes() const noexcept { return round_up(rows_staged * row * scalar, kCacheLine); }
  int64_t scratch_bytes() const noexcept {
    // Rounded up to a cache line by as much as the caller's memory may be off one.
    return convolution.empty() || width == 0 ? 0
                                             : offset_bytes() + partial_bytes() + rows_bytes() +
                                                   tasks() * tile_bytes + kCacheLine;
  }
};

// The two ways: x staged in planes, or read where it is because its channels lie side by side, and
// are the lanes of vectors.
void run_planes(const Call& call, int64_t task, char* tile);
// Rows of dy that are staged beforehand, from the first of these up to the last.
void stage_rows(const Call& call, int64_t begin, int64_t end);
void run_lanes(const Call& call, int64_t task, char* tile);

// Checks the arguments; all of the call but its pointers and the count.
neq_status prepare(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Call* call) noexcept;

}  // namespace neq::conv
