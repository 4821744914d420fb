// depthwise_wgrad one channel at a time, vectors along the rows of its planes, read where they are:
// for NCHW.
#pragma once

#include <algorithm>

#include "cpu/depthwise_wgrad.h"
#include "cpu/depthwise_wgrad_walk.h"

namespace neq::depthwise {

struct RowsPlan : Plan {
  const WalkKernels* kernels;
  Along along;
  TapChunks tall;  // the taps along columns
  TapChunks wide;  // and across
  // A unit is a band of a plane's rows, or several samples' whole planes; it stays in the cache.
  Cut band;
  int64_t samples;
  int64_t units;

  // Whether the strides allow it.
  static bool suits(const Convolution& convolution) noexcept;
  // Says how; null pointers are for the caller to fill in.
  void prepare(const Convolution& convolution, int64_t width) noexcept;
  // Of the `width` prepared for, `active` are active and the others padding.
  void adopt_count(int64_t active) noexcept {
    count = vectors = active;
    tasks = std::min(tasks, active * blocks);
  }
  void run(int64_t task, char* tile) const noexcept;
};

}  // namespace neq::depthwise
