// What the kernels of depthwise_wgrad are told.
#pragma once

#include <cstdint>

#include "convolution.h"
#include "cuda/common.cuh"
#include "cuda/divisor.cuh"
#include "tensor.h"

namespace neq::depthwise {

using namespace neq::cuda;

constexpr int kThreads = 256;

// `total` in `parts`, the first `larger` of which have one more than `each`.
struct Cut {
  int64_t parts;
  int64_t each;
  int64_t larger;

  __device__ int64_t start(int64_t part) const {
    return each * part + (part < larger ? part : larger);
  }
};

// A line is a row of a sample: n * rows + p.
struct Job {
  Convolution convolution;
  const char* dy;
  const char* x;
  char* dw;
  char* db;  // null if nobody wants it
  const int32_t* index;
  double* partial;  // [width, taps + 1, parts], the last tap for db
  int64_t width;
  int64_t parts;  // of lines * of columns; 0 if there is nothing to sum
  Cut lines;
  Cut columns;
  // How the threads of a block stand: `lanes` channels, a power of two up to 32, then columns.
  int32_t lanes;
  int32_t across;
  int32_t down;
  int32_t down_samples;  // down = down_samples * rows + down_rows
  int64_t down_rows;
  Divisor tiles;  // of taps: all, and side by side
  Divisor tiles_wide;
  Divisor column_parts;
  Divisor rows;
  Divisor slots;  // taps + 1
};

struct Plan {
  Job job;
  bool tall;  // tiles of 3x3 taps, else of 1x4
  int64_t blocks;
};

// Checks the arguments; index, db and partial sums are left to the caller.
neq_status plan_of(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Plan* plan);
neq_status check_alignment(const char* name, const void* data, int32_t dtype);
int64_t scratch_bytes(const Job& job);

}  // namespace neq::depthwise
