// depthwise_wgrad one channel at a time, vectors along its positions: for NCHW, and for whatever
// strides have no other way.
#pragma once

#include "cpu/depthwise_wgrad.h"

namespace neq::depthwise {

struct PlanePlan : Plan {
  // One axis of a tile: `band` of dy's positions, and of x those they meet, once per phase.
  struct Side {
    int64_t band;
    int64_t bands;
    int64_t phases;  // of the remainders modulo the stride, those that a tap has
    int64_t reach;   // steps of the stride from the first tap to the last
    int64_t pitch;   // from one band to the next in a tile
  };
  Side side[2];
  int64_t units;  // of bands, per tile
  int64_t tiles;  // in all
  int64_t plane;  // elements of x in one phase of a tile
  int64_t dy_plane;
  int64_t sums_bytes;  // of a tile, in front
};

// Says how; null pointers in `plan` are for the caller to fill in. False: a tile would not fit.
bool plan_planes(const Convolution& convolution, const Kernels& kernels, int64_t width,
                 PlanePlan* plan) noexcept;

// Of the `width` planned for, `count` are active and the others padding.
inline void adopt_count(PlanePlan* plan, int64_t count) noexcept {
  plan->count = count;
  plan->tasks = std::min(plan->tasks, count * plan->blocks);
}

inline int64_t planes_partial(const PlanePlan& plan) noexcept {
  return plan.blocks * plan.count * (plan.convolution->taps() + 1);
}

void run_planes(const PlanePlan& plan, int64_t task, char* tile) noexcept;

// Of the `i`th active channel; tap taps() is the bias.
inline double planes_sum(const PlanePlan& plan, int64_t block, int64_t i, int64_t tap) noexcept {
  return plan.partial[(block * plan.count + i) * (plan.convolution->taps() + 1) + tap];
}

}  // namespace neq::depthwise
