// What a call of depthwise_wgrad, conv_wgrad or conv_dgrad means, on any device: its arguments
// checked, and one spatial dimension made two, the first of them of size 1.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq {

// One spatial dimension: output p reads input p * stride + r * dilation - padding with weight r.
struct Axis {
  int64_t out;
  int64_t in;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// Strides in elements, of [batch, channel, axis 0, axis 1].
struct Strides {
  int64_t batch;
  int64_t channel;
  int64_t axis[2];
};

struct Convolution {
  neq_dtype dtype;
  int64_t batch;
  int64_t outputs;
  int64_t inputs;
  int64_t multiplier;
  Axis axis[2];
  Strides dy;
  Strides x;
  Strides dw;  // `batch`: from one output channel to the next

  int64_t taps() const noexcept { return axis[0].kernel * axis[1].kernel; }
  // Whether every sum has no summand at all.
  bool empty() const noexcept {
    return batch == 0 || outputs == 0 || axis[0].out == 0 || axis[1].out == 0;
  }
};

// One: every output channel reads all input channels. Depthwise: each reads one. Input: as kOne,
// but what is sought is x's gradient: x is written and called dx, dw is the weight.
enum class Groups { kOne, kDepthwise, kInput };

neq_status understand(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                      const neq_window* window, const neq_tensor* dw, Groups groups,
                      Convolution* convolution) noexcept;

}  // namespace neq
