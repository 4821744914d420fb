// What a call of conv_dgrad means on a CPU: how dx falls into phases, and how the work is cut.
#pragma once

#include <cstdint>

#include "cache.h"
#include "conv_dgrad.h"
#include "convolution.h"
#include "staging.h"

namespace neq::dgrad {

inline constexpr int64_t kMostPhases = 64;
// Rows of dx taken at once, at most: of every phase one for each.
inline constexpr int64_t kMostUnits = 128;

// The inputs place, place + stride, ... of one spatial dimension. All of them meet the same
// weights: input `place + step * stride` is output `step + first_shift - m * drop` under weight
// `first + m * period`, for m < taps; outputs that there are not are zeros.
struct Phase {
  int64_t place;
  int64_t steps;
  int64_t first;
  int64_t first_shift;
  int64_t taps;
};

// One spatial dimension: those of its phases that meet any weight.
struct Side {
  Phase phase[kMostPhases];
  int64_t phases;
  int64_t taps;    // of all phases
  int64_t steps;   // of the phase that has most
  int64_t period;  // of weights that meet the same phase
  int64_t drop;
  int64_t lowest;  // of all shifts
  int64_t reach;   // and from there to the highest
  bool gaps;       // whether there are inputs that meet no weight

  // Returns whether there are no more phases than that.
  bool understand(const Axis& axis) noexcept;
};

struct Call {
  Convolution convolution;
  Side side[2];
  const Kernels* kernels;
  const staging::Kernels* staging;
  int64_t element;  // bytes of a tensor's
  int64_t scalar;   // and of a staged one
  int64_t width;
  int64_t count;  // active channels
  bool pixels;    // whether vectors are channels of dx, not positions
  // Of planes: whether dy is unfolded where it is, of a window that meets each of its rows as they
  // are; whether the two phases of a row are stored in turn.
  bool in_place;
  bool paired;

  // A unit is a row of each phase, or, where rows are long, a part of it.
  int64_t parts_of_row;
  int64_t units;
  int64_t units_at_once;
  int64_t unit_parts;  // tasks they are cut into
  int64_t channel_units;
  int64_t channels_of_unit;
  int64_t channel_parts;

  // Elements of a task's memory.
  int64_t pitch;    // of staged rows, in pixels
  int64_t plane;    // of a staged channel, or of all pixels
  int64_t weights;  // all panels of a task's channels
  int64_t columns;  // of all phases' unfolded planes
  int64_t staged;
  int64_t tile_bytes;
  void (*run)(const Call&, int64_t begin, int64_t end);

  const char* dy;
  const char* weight;
  char* dx;
  const char* dy_end;
  const char* weight_end;
  const int32_t* index;
  // Phase by phase, elements from the first weight of a channel, and staged elements from where the
  // lowest shifts meet an output.
  int64_t* weight_offsets;
  int64_t* staged_offsets;
  char* panels;  // of weights, one task's behind the other's
  char* tiles;

  int64_t phases() const noexcept { return side[0].phases * side[1].phases; }
  const Phase& tall(int64_t at) const noexcept { return side[0].phase[at / side[1].phases]; }
  const Phase& wide(int64_t at) const noexcept { return side[1].phase[at % side[1].phases]; }
  int64_t taps() const noexcept { return side[0].taps * side[1].taps; }
  int64_t tasks() const noexcept { return unit_parts * channel_parts; }
  int64_t offset_bytes() const noexcept {
    return round_up(taps() * int64_t{sizeof(int64_t)}, kCacheLine);
  }
  int64_t panel_bytes() const noexcept { return tasks() * weights * scalar; }
  int64_t scratch_bytes() const noexcept {
    // Rounded up to a cache line by as much as the caller's memory may be off one.
    return run ? 2 * offset_bytes() + panel_bytes() + tasks() * tile_bytes + kCacheLine : 0;
  }
};

// The two ways: vectors of positions, and vectors of channels. Both run the tasks of a range.
void run_planes(const Call& call, int64_t begin, int64_t end);
void run_pixels(const Call& call, int64_t begin, int64_t end);

// Checks the arguments; all of the call but its pointers and the count.
neq_status prepare(const neq_tensor* dy, const neq_tensor* weight, int64_t width,
                   const neq_window* window, const neq_tensor* dx, Call* call) noexcept;

}  // namespace neq::dgrad
