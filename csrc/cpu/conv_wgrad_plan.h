// What a call of conv_wgrad means on a CPU: how x and dy are staged, and how the work is cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache.h"
#include "conv_wgrad.h"
#include "convolution.h"
#include "staging.h"

namespace neq::conv {

// One spatial dimension: weight r meets phase r * dilation % stride of x, `offset` steps on.
struct Steps {
  int64_t phases;  // all that weights may meet
  int64_t reach;   // the largest offset
  int64_t pitch;   // steps staged: as many as outputs, and the reach
  int64_t beyond;  // steps that may be read or written past these

  static Steps of(const Axis& axis) noexcept {
    const int64_t reach = (axis.kernel - 1) * axis.dilation / axis.stride;
    const int64_t pitch = axis.out + reach;
    const int64_t padding = std::min(divide_up(axis.padding, axis.stride), pitch);
    return {std::min(axis.stride, (axis.kernel - 1) * axis.dilation + 1), reach, pitch,
            std::max(reach, padding)};
  }
};

struct Call {
  Convolution convolution;
  const Kernels* kernels;
  const staging::Kernels* staging;
  Steps steps[2];
  int64_t element;   // bytes of a tensor's
  int64_t scalar;    // and of a staged one
  int64_t width;     // rows of dw
  int64_t count;     // of them active
  int64_t columns;   // of a row of sums: the weights, and the bias
  int64_t plane;     // staged elements of a sample's channel
  int64_t samples;   // staged at a time
  int64_t length;    // of a product
  int64_t row;       // staged elements from one channel of dy to the next
  int64_t column;    // and from one phase of a channel of x to the next
  int64_t channels;  // of x, staged at a time
  int64_t sample_blocks;
  int64_t channel_blocks;
  int64_t tile_bytes;  // of each task
  const char* dy;
  const char* x;
  const char* dy_end;
  const char* x_end;
  const int32_t* index;
  char* partial;  // [sample_blocks, width, columns]
  char* tiles;

  int64_t tasks() const noexcept { return sample_blocks * channel_blocks; }
  int64_t phases() const noexcept { return steps[0].phases * steps[1].phases; }
  int64_t partial_bytes() const noexcept {
    return round_up(sample_blocks * width * columns * scalar, kCacheLine);
  }
  int64_t scratch_bytes() const noexcept {
    // Rounded up to a cache line by as much as the caller's memory may be off one.
    return convolution.empty() || width == 0 ? 0
                                             : partial_bytes() + tasks() * tile_bytes + kCacheLine;
  }
};

// Checks the arguments; all of the call but its pointers and the count.
neq_status prepare(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Call* call) noexcept;

}  // namespace neq::conv
