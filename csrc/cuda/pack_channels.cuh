// What the kernels of pack_channels are told, and how they find their way in both tensors.
#pragma once

#include <cstdint>

#include "cpu/pack_channels_geometry.h"
#include "cuda/common.cuh"
#include "cuda/divisor.cuh"

namespace neq::cuda {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // that one thread gathers from at once

// Vectors that one thread has in flight: together 64 bytes, or 8 where vectors are short.
constexpr int in_flight(int64_t bytes) { return bytes == 16 ? 4 : 8; }

struct Offsets {
  int64_t source;  // bytes
  int64_t target;
};

// Dimensions around the channels, the last one fastest.
struct Outer {
  pack::Dim dims[NEQ_MAX_DIMS];
  Divisor sizes[NEQ_MAX_DIMS];
  int32_t count;
};

// kFlat: there is one dimension at most.
template <bool kFlat>
__device__ inline Offsets offsets_of(const Outer& outer, int64_t ordinal) {
  Offsets offsets = {0, 0};
#pragma unroll 1
  for (int32_t d = kFlat ? 0 : outer.count - 1; d > 0; --d) {
    const int64_t rest = outer.sizes[d].divide(ordinal);
    const int64_t at = ordinal - rest * outer.dims[d].size;
    offsets.source += at * outer.dims[d].source;
    offsets.target += at * outer.dims[d].target;
    ordinal = rest;
  }
  offsets.source += ordinal * outer.dims[0].source;
  offsets.target += ordinal * outer.dims[0].target;
  return offsets;
}

struct Job {
  const char* source;
  char* target;
  const int32_t* index;
  void* bias;       // null if nobody wants it
  double* partial;  // [parts, width]; null if there is one part, which then writes the bias
  int64_t channels;
  int64_t width;
  int64_t positions;  // rows, planes, or steps of planes
  int64_t parts;      // of the positions; each makes a row of partial sums
  int64_t in_part;    // positions of a part; the first `larger` ones have one more
  int64_t larger;
  pack::Dim channel;
  pack::Dim run;  // of vectors, not of elements; none where rows are walked
  Divisor steps;  // of one run
  Outer outer;
};

enum class Walk { kRows, kPlanes, kLongRuns };

struct Plan {
  Job job;
  Walk walk;
  int elements;  // of one vector, or channels of one thread
  int across;    // threads side by side
  int down;
  int64_t pieces;  // blocks side by side: of a row, or channels
};

// Checks the arguments; index and partial sums are left to the caller.
neq_status plan_of(const neq_tensor* dy, int32_t dim, const neq_tensor* packed, const void* bias,
                   Plan* plan);
int64_t scratch_bytes(const Plan& plan);

// Part `part` starts here, and ends where the next one starts.
__device__ inline int64_t part_start(const Job& job, int64_t part) {
  return job.in_part * part + (part < job.larger ? part : job.larger);
}

// Walks every `step`-th outer position of [first, end). Flat, it only ever adds.
template <bool kFlat>
class Steps {
 public:
  __device__ Steps(const Outer& outer, int64_t first, int64_t end, int step)
      : outer_(outer), position_(first), left_(static_cast<int>(end - first)), step_(step) {
    at_ = offsets_of<kFlat>(outer, first);
    if (!kFlat) return;
    const Offsets by = offsets_of<kFlat>(outer, step);
    by_ = {opaque(by.source), opaque(by.target)};
  }

  // Whether this one and `ahead` behind it are left.
  __device__ bool more(int ahead) const { return left_ > ahead * step_; }
  __device__ void pass(int count) { left_ -= count * step_; }
  __device__ int64_t source() const { return at_.source; }
  __device__ int64_t target() const { return at_.target; }

  // Does not count; see pass().
  __device__ void advance() {
    if (kFlat) {
      at_.source = opaque(at_.source + by_.source);
      at_.target = opaque(at_.target + by_.target);
    } else {
      position_ += step_;
      at_ = offsets_of<kFlat>(outer_, position_);
    }
  }

 private:
  const Outer& outer_;
  int64_t position_;
  int left_;
  int step_;
  Offsets at_ = {0, 0};
  Offsets by_ = {0, 0};
};

}  // namespace neq::cuda
