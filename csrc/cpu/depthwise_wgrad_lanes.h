// depthwise_wgrad many channels at a time, one per lane: for tensors whose neighbouring elements
// are neighbouring channels (channels_last), and for planes too small to fill vectors.
#pragma once

#include "cpu/depthwise_wgrad.h"
#include "cpu/pack_channels.h"

namespace neq::depthwise {

struct LanePlan : Plan {
  bool turned;       // whether neighbours are positions, and turned into lanes
  bool all;          // whether every channel gets a lane, where most are active
  int64_t channels;  // that get one
  int64_t chunk;     // of them that a task takes at once; a multiple of the lanes
  int64_t chunks;
  int64_t band[2];  // of dy's positions, per axis
  int64_t bands[2];
  int64_t extent[2];  // of x's that they meet
  int64_t units;      // of bands, per tile
  int64_t tiles;
  int64_t pitch;         // from one position to the next in a tile
  int64_t x_scalars;     // of a tile
  int64_t dy_scalars;    // 0 where dy is read in place
  int64_t narrow_bytes;  // room for a row of channels as they are stored
  pack::Group* groups;   // [blocks, 2 tensors, channels]
  int64_t* offsets;      // [2 tensors, channels], in bytes; of turned channels
  int32_t* x_index;      // [channels]; of others
};

// Whether the strides allow it, and planes are not the better way.
bool has_lanes(const Convolution& convolution, int64_t width) noexcept;

// Says how; null pointers in `plan` are for the caller to fill in. False: a tile would not fit.
bool plan_lanes(const Convolution& convolution, const Kernels& kernels, int64_t width,
                LanePlan* plan) noexcept;

// Of the `width` planned for, `count` are active and the others padding.
void adopt_count(LanePlan* plan, int64_t count) noexcept;

inline int64_t lanes_partial(const LanePlan& plan) noexcept {
  return plan.blocks * plan.chunks * plan.chunk * (plan.convolution->taps() + 1);
}

void run_lanes(const LanePlan& plan, int64_t task, char* tile) noexcept;

// Of the `i`th active channel, which is `channel`; tap taps() is the bias.
inline double lanes_sum(const LanePlan& plan, int64_t block, int64_t i, int64_t channel,
                        int64_t tap) noexcept {
  const int64_t place = plan.all ? channel : i;
  const int64_t lanes = plan.kernels->lanes;
  const int64_t vector = block * plan.chunks * plan.chunk / lanes + place / lanes;
  return plan.partial[(vector * (plan.convolution->taps() + 1) + tap) * lanes + place % lanes];
}

}  // namespace neq::depthwise
