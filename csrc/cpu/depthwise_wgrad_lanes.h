// depthwise_wgrad many channels at a time, one per lane: for tensors whose neighbouring elements
// are neighbouring channels (channels_last).
#pragma once

#include "cpu/depthwise_wgrad.h"
#include "cpu/depthwise_wgrad_lanes_walk.h"
#include "cpu/pack_channels.h"

namespace neq::depthwise {

struct LanesPlan : Plan {
  const LanesKernels* kernels;
  Along along;
  TapChunks tall;  // the taps across rows
  TapChunks wide;  // and along them
  // Whether the active channels are packed in a tile first, and not read where they are: their
  // vectors, and whatever other channels these hold.
  bool packed;
  // A unit is a band of a plane, or several samples' whole planes; it stays in the cache.
  Cut band[2];
  int64_t samples;
  int64_t units;
  int64_t chunk;  // of vectors, which a task takes at once
  int64_t chunks;
  int64_t x_rows;  // of a tile
  int64_t x_columns;
  int64_t pitch;            // elements of a tile from one position to the next
  int64_t x_bytes;          // of a tile
  int32_t* active_vectors;  // [vectors]; where channels are read in place
  int64_t active_count;
  int32_t* x_index;     // [count]; where they are packed
  pack::Group* groups;  // [blocks, 2 tensors, count]

  // Whether the strides allow it.
  static bool suits(const Convolution& convolution) noexcept;
  // Says how; null pointers are for the caller to fill in. False: a tile would not fit.
  bool prepare(const Convolution& convolution, int64_t width) noexcept;
  // Of the `width` prepared for, `active` are active and the others padding.
  void adopt_count(int64_t active) noexcept;
  // Bytes for the lists, and where they are, made of `index`.
  int64_t lists_bytes() const noexcept;
  void place_lists(char* memory) noexcept;
  void run(int64_t task, char* tile) const noexcept;
};

}  // namespace neq::depthwise
