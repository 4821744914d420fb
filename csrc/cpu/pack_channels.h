// pack_channels in three loops, each written once per instruction set. What calls them, in which
// order and on which thread is pack_channels.cpp's business and the same for all.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::pack {

// Neighbouring channels that one shuffle of a vector moves: bit b of
// `lanes` says channel `source + b` is active. The active ones of the vector's lower half land at
// packed channel `target` onwards, those of the upper half, if it is shuffled apart, at `middle`.
struct Group {
  int32_t source;
  int32_t target;
  int32_t middle;
  uint32_t lanes;
};

// What to do with every row [channels] -> [width]: move the groups, zero what is beyond `count`.
// Groups store whole vectors, so the last ones spill over the end of the row. A row that must not
// spill moves the first `exact_groups`, then the channels from `tail` on one by one.
//
// For pack_rows alone, groups may be without an active channel, and all of them come `merged`
// times: each time for the next row, so that this many short rows behind each other are one to it.
struct RowPlan {
  const int32_t* index;
  const Group* groups;
  int64_t group_count;
  int64_t exact_groups;
  int64_t tail;
  int64_t count;
  int64_t width;
  int64_t channels;
  int64_t merged;
};

// A run of `length` neighbouring elements for each channel in `index`: from source + index[i] *
// source_step to target + i * target_step, in bytes. From `next` on lie those read afterwards.
struct Runs {
  char* target;
  const char* source;
  const char* next;
  const int32_t* index;
  int64_t count;
  int64_t length;
  int64_t target_step;
  int64_t source_step;
};

// The elements that a group of up to 32 lanes may write, or a vector of sums read, past its row.
inline constexpr int64_t kMaxSpill = 31;

// Partial sums are padded to whole vectors.
inline constexpr int64_t kSumLanes = 16;

// How far ahead memory is asked for, to be read and to be written. A processor's own prefetching
// stops at every page and every gap, and runs too short ahead of loads that wait for shuffles;
// stores retire in order, so that one which waits for memory holds up all behind it, sums among
// them (Zen 5, from 8 to 256 MiB: 1.1 to 1.6 times as fast with the first, 1.0 to 1.2 with the
// second). Beyond a tensor's end it does nothing.
inline constexpr int64_t kAheadBytes = 8192;
inline constexpr int64_t kTargetAheadBytes = 4096;

// Inlined by force, here and below: a call that only prefetches looks like one without effect to a
// compiler, and is dropped.
[[gnu::always_inline]] inline void prefetch_ahead(const void* source) noexcept {
  __builtin_prefetch(static_cast<const char*>(source) + kAheadBytes);
}

[[gnu::always_inline]] inline void prefetch_target(void* target) noexcept {
  __builtin_prefetch(static_cast<char*>(target) + kTargetAheadBytes, 1);
}

// Where the run lies that is to be asked for while run i is copied: frozen planes are skipped, and
// each may be another page.
class RunsAhead {
 public:
  RunsAhead(const Runs& runs, int64_t bytes) noexcept : runs_(runs) {
    distance_ = bytes * kMost < kAheadBytes ? kMost : bytes < kAheadBytes ? kAheadBytes / bytes : 1;
  }

  [[gnu::always_inline]] const char* of(int64_t i) const noexcept {
    const int64_t at = i + distance_;
    if (at < runs_.count) return runs_.source + runs_.index[at] * runs_.source_step;
    const int64_t then = at - runs_.count < runs_.count ? at - runs_.count : runs_.count - 1;
    return runs_.next + runs_.index[then] * runs_.source_step;
  }

 private:
  static constexpr int64_t kMost = 64;

  const Runs& runs_;
  int64_t distance_;
};

struct Kernels {
  // Channels of one group; 0 where all rows go channel by channel. That is also the way of rows
  // with fewer channels than `fewest`, and the faster one of fewer active channels per group than
  // `sparse`.
  int64_t lanes;
  int64_t fewest;
  int64_t sparse;
  // targets[r][i] = sources[r][index[i]] for r < rows. Only the last `exact` rows must not spill.
  void (*copy_rows)(char* const* targets, const char* const* sources, int64_t rows, int64_t exact,
                    const RowPlan& plan);
  // sums[i] += sum over r < rows of packed[r][i], anything in their padding; may read past all rows
  // but the last `exact`.
  void (*add_rows)(double* sums, char* const* packed, int64_t rows, int64_t exact, int64_t width);
  // copy_rows by groups, with add_rows unless `sums` is null, in one go; null where the two follow
  // each other.
  void (*pack_rows)(double* sums, char* const* targets, const char* const* sources, int64_t rows,
                    int64_t exact, const RowPlan& plan);
  // Copies runs; sums[i] += the sum of run i, unless `sums` is null.
  void (*copy_runs)(double* sums, const Runs& runs);
  // Copies n elements with a stride, in elements, on either side, and returns their sum.
  double (*copy_strided)(char* target, int64_t target_stride, const char* source,
                         int64_t source_stride, int64_t n);
};

// Sums inside the kernels are in the element's Sum type over at most this many rows, or about as
// many elements of a run.
inline constexpr int64_t kMaxRows = 32;
inline constexpr int64_t kMaxRun = 1024;

const Kernels& scalar_kernels(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(neq_dtype dtype) noexcept;
#endif

// Those of the instruction set in use.
const Kernels& best_kernels(neq_dtype dtype) noexcept;

}  // namespace neq::pack
