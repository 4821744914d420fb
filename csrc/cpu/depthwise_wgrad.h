// What the ways of depthwise_wgrad have in common: depthwise_wgrad.cpp says what they are.
#pragma once

#include <cstdint>

#include "convolution.h"
#include "cpu/cache.h"
#include "lanes.h"
#include "neq/neq.h"

namespace neq::depthwise {

// Of tiles that are too large for a task each, fewer tasks share fewer.
inline constexpr int64_t kScratchBytes = 64 << 20;
inline constexpr int64_t kMaxTasks = 64;

// One way to compute the sums: the work in tasks, each with a tile of its own. `partial` holds them
// per block of positions as [blocks, vectors, taps + 1, lanes], the last tap for the bias.
struct Plan {
  const Convolution* convolution;
  const char* dy;
  const char* x;
  Readable dy_memory;
  Readable x_memory;
  const int32_t* index;
  int64_t count;    // active channels; all of the list until its padding is known
  int64_t element;  // bytes of a tensor's
  int64_t scalar;   // and of a sum's
  int64_t blocks;
  int64_t vectors;
  int64_t lanes;
  bool by_channel;  // whether lanes are all channels, or the active ones
  int64_t tasks;
  int64_t tile_bytes;
  double* partial;
  char* tiles;  // of task t at t * tile_bytes, aligned to a cache line

  int64_t sums() const noexcept { return convolution->taps() + 1; }
  int64_t partial_count() const noexcept { return blocks * vectors * sums() * lanes; }
  double* partial_of(int64_t block, int64_t vector) const noexcept {
    return partial + (block * vectors + vector) * sums() * lanes;
  }

  // The sums of the `i`th active channel, which is `channel`, `lanes` apart: of the first block, to
  // which those of the others are added.
  const double* add_blocks(int64_t i, int64_t channel) const noexcept {
    const int64_t place = by_channel ? channel : i;
    const int64_t vector = lanes == 1 ? place : place / lanes;
    const int64_t lane = place - vector * lanes;
    double* const to = partial_of(0, vector) + lane;
    for (int64_t block = 1; block < blocks; ++block) {
      const double* const from = partial_of(block, vector) + lane;
      for (int64_t tap = 0; tap < sums(); ++tap) to[tap * lanes] += from[tap * lanes];
    }
    return to;
  }

 protected:
  void start(const Convolution& c, int64_t width) noexcept {
    convolution = &c;
    count = width;
    element = element_bytes(c.dtype);
    scalar = c.dtype == NEQ_F64 ? 8 : 4;
  }
};

// `total` in as few equal parts of at most `longest` as there can be.
struct Cut {
  int64_t part;
  int64_t parts;

  static Cut of(int64_t total, int64_t longest) noexcept {
    const int64_t parts = divide_up(total, longest < 1 ? 1 : longest);
    const int64_t part = divide_up(total, parts);
    return {part, divide_up(total, part)};
  }
};

// Bytes as whole cache lines, an odd number of them: neighbours a power of two apart would share
// few places in a cache.
inline int64_t odd_lines(int64_t bytes) noexcept {
  return (divide_up(bytes, kCacheLine) | 1) * kCacheLine;
}

}  // namespace neq::depthwise
