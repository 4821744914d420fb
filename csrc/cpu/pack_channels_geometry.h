// What a call of pack_channels means: its arguments checked, its dimensions collapsed to as few as
// the strides allow, its work cut into blocks by the sizes alone.
#pragma once

#include <cstdint>

#include "neq/neq.h"
#include "pack_channels.h"
#include "tensor.h"

namespace neq::pack {

enum class Walk { kPlanes, kRows, kStrided };

struct Dim {
  int64_t size;
  int64_t source;  // strides in bytes
  int64_t target;
};

// The call once it is understood: `outer` dimensions around channels and, except for rows, a run.
struct Geometry {
  Walk walk;
  neq_dtype dtype;
  int64_t element;  // bytes
  int64_t channels;
  int64_t width;
  Dim channel;
  Dim run;
  Dim outer[NEQ_MAX_DIMS];
  int32_t outer_dims;
  int64_t run_step;   // longest run taken at once
  int64_t run_steps;  // steps per run
  int64_t positions;  // product of outer sizes and run_steps
  int64_t blocks;     // of positions; one row of partial sums each
  int64_t columns;    // blocks of channels, when there are too few positions
};

// Channels with the padding of their partial sums.
inline int64_t padded(int64_t width) noexcept { return divide_up(width, kSumLanes) * kSumLanes; }

// Counts through the outer dimensions, the last one fastest, and keeps both offsets.
class Position {
 public:
  Position(const Geometry& geometry, int64_t ordinal) noexcept : geometry_(geometry) {
    for (int32_t d = geometry.outer_dims - 1; d >= 0; --d) {
      const Dim& dim = geometry.outer[d];
      at_[d] = ordinal % dim.size;
      ordinal /= dim.size;
      source_ += at_[d] * dim.source;
      target_ += at_[d] * dim.target;
    }
  }

  void advance() noexcept {
    for (int32_t d = geometry_.outer_dims - 1; d >= 0; --d) {
      const Dim& dim = geometry_.outer[d];
      source_ += dim.source;
      target_ += dim.target;
      if (++at_[d] < dim.size) return;
      source_ -= dim.size * dim.source;
      target_ -= dim.size * dim.target;
      at_[d] = 0;
    }
  }

  int64_t source() const noexcept { return source_; }
  int64_t target() const noexcept { return target_; }

 private:
  const Geometry& geometry_;
  int64_t at_[NEQ_MAX_DIMS] = {};
  int64_t source_ = 0;
  int64_t target_ = 0;
};

// dy and packed as neq_pack_channels_cpu wants them.
neq_status check_tensors(const neq_tensor* dy, int32_t dim, const neq_tensor* packed) noexcept;

// Counts the active channels; the rest of `index` is padding.
neq_status check_index(const int32_t* index, int64_t width, int64_t channels,
                       int64_t* count) noexcept;

// Of tensors that have been checked.
Geometry understand(const neq_tensor& dy, int32_t dim, const neq_tensor& packed) noexcept;

}  // namespace neq::pack
