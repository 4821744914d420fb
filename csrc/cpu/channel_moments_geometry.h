// What a call of channel_moments means: its arguments checked, its dimensions collapsed to as few
// as the strides allow, its work cut into blocks by the sizes alone.
#pragma once

#include <cstdint>

#include "channel_moments.h"
#include "neq/neq.h"
#include "tensor.h"

namespace neq::moments {

// Which of the Kernels.
enum class Walk { kRows, kRuns, kStrided };

struct Dim {
  int64_t size;
  Step step;
};

// The call once it is understood: samples, `outer` dimensions, and inside them channels and
// `inner`, which is the rows, or the run of one channel, that a kernel takes a piece of.
struct Geometry {
  neq_dtype a;
  neq_dtype b;
  Walk walk;
  Dim sample;  // one, where samples are summed as well
  Dim channel;
  Dim inner;
  Dim outer[NEQ_MAX_DIMS];
  int32_t outer_dims;
  int64_t fold;     // contiguous rows of few channels taken as one: sums of [fold, channels]
  int64_t piece;    // the longest that a kernel takes at once
  int64_t pieces;   // of inner, per sample and position in outer
  int64_t places;   // pieces of one sample
  int64_t blocks;   // of places; one row of partial sums each
  int64_t columns;  // blocks of channels, where there are too few places

  int64_t width() const noexcept { return channel.size * fold; }
  bool direct() const noexcept { return blocks == 1 && fold == 1; }
};

// a and b as neq_channel_moments wants them.
neq_status check(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                 int32_t per_sample) noexcept;

// Of tensors that have been checked.
Geometry understand(const neq_tensor& a, const neq_tensor& b, int32_t dim,
                    bool per_sample) noexcept;

}  // namespace neq::moments
