// depthwise_wgrad one channel at a time, its planes staged in a tile first: for whatever strides
// have no other way.
#pragma once

#include <algorithm>

#include "cpu/depthwise_wgrad.h"
#include "cpu/staging.h"

namespace neq::depthwise {

struct StagedKernels {
  // Elements of a vector, of float or, for fp64, of double; a power of two.
  int64_t lanes;
  // sums[t] += dy * x[t] summed over `vectors` of a tile, for each of `taps` tiles and every lane
  // on its own, and bias += dy unless it is null. At most kStagedTaps of them. The sums in between
  // have the tile's type: at most kStagedVectors.
  void (*correlate)(double* sums, double* bias, const void* dy, const void* const* x, int64_t taps,
                    int64_t vectors);
};

inline constexpr int64_t kStagedTaps = 9;
inline constexpr int64_t kStagedVectors = 128;

const StagedKernels& scalar_staged(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const StagedKernels& avx2_staged(neq_dtype dtype) noexcept;
const StagedKernels& avx512_staged(neq_dtype dtype) noexcept;
#endif

struct StagedPlan : Plan {
  // One axis of a tile: `band` of dy's positions, and of x those they meet, once per phase.
  struct Side {
    int64_t band;
    int64_t bands;
    int64_t phases;  // of the remainders modulo the stride, those that a tap has
    int64_t reach;   // steps of the stride from the first tap to the last
    int64_t pitch;   // from one band to the next in a tile
  };
  const StagedKernels* kernels;
  const staging::Kernels* staging;
  Side side[2];
  int64_t units;  // of bands, per tile
  int64_t tile_count;
  int64_t plane;  // elements of x in one phase of a tile
  int64_t dy_plane;
  int64_t sums_bytes;  // of a tile, in front

  // Says how; null pointers are for the caller to fill in. False: a tile would not fit.
  bool prepare(const Convolution& convolution, int64_t width) noexcept;
  // Of the `width` prepared for, `active` are active and the others padding.
  void adopt_count(int64_t active) noexcept {
    count = vectors = active;
    tasks = std::min(tasks, active * blocks);
  }
  void run(int64_t task, char* tile) const noexcept;
};

}  // namespace neq::depthwise
