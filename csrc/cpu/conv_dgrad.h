// The loops of conv_dgrad, each written once and compiled per instruction set: conv_dgrad.cpp says
// what they are for.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::dgrad {

// At most this many rows and vectors of sums at a time.
inline constexpr int64_t kMostRows = 8;
inline constexpr int64_t kMostVectors = 4;

// What fits registers.
struct Shape {
  int64_t rows;
  int64_t vectors;
};

// Neighbouring sums of a tile, and where they go: elements from the start of their row.
struct Segment {
  int64_t from;
  int64_t to;
  int64_t count;
};

// Neighbouring elements of a staged plane.
struct Line {
  int64_t at;
  int64_t count;
};

// Columns of a product in panels: vectors cut into as few panels as fit registers, all as wide as
// the others or a vector less; within a panel one row for each place of the sum.
struct Panels {
  int64_t vectors;
  int64_t panels;
  int64_t length;  // of the sum
};

// Weights of one active channel: `taps` of each of `inputs` channels, strides in elements.
struct Weights {
  const char* source;
  int64_t inputs;
  int64_t stride;
  const int64_t* offsets;  // of each tap
  int64_t taps;
  const char* readable;  // from here on, memory may not be read
};

struct Kernels {
  // Elements of a vector, of float or, for fp64, of double.
  int64_t lanes;
  Shape planes;  // for multiply_panel, whose panels have so many rows
  Shape pixels;  // for multiply_rows
  // sums[r][lane] = sum over k < length of panel[k][r] * columns[k][lane], in whole vectors.
  void (*multiply_panel)(void* const* sums, const void* panel, int64_t row_count,
                         int64_t vector_count, int64_t length, const void* columns);
  // sums[r][lane] = sum over runs and k < length of rows[r][offsets[run] + k] * columns[run][k]
  // [lane], in whole vectors.
  void (*multiply_rows)(void* const* sums, const void* const* rows, int64_t row_count,
                        int64_t vector_count, const int64_t* offsets, int64_t run_count,
                        int64_t length, const void* columns);
  // rows[r][segment.to + k * step] = tile[r * pitch + segment.from + k], rounded to the element.
  void (*store)(void* const* rows, int64_t row_count, int64_t step, const void* tile, int64_t pitch,
                const Segment* segments, int64_t segment_count);
  // rows[r][segment.to + 2 * k + i] = tiles[i][r * pitch + segment.from + k] for both of them.
  void (*interleave)(void* const* rows, int64_t row_count, const void* const* tiles, int64_t pitch,
                     const Segment* segments, int64_t segment_count);
  // panels[input / rows][place + tap][input % rows], each of `length` places.
  void (*pack_rows)(void* panels, int64_t length, int64_t place, const Weights& weights);
  // The same in Panels of inputs; taps are `step` places apart. Of no input beyond the last one is
  // anything written, or zeros.
  void (*pack_columns)(void* columns, const Panels& panels, int64_t place, int64_t step,
                       const Weights& weights);
  // Row place + tap of the panels: the lines of a plane behind each other, offsets[tap] on.
  void (*unfold)(void* columns, const Panels& panels, int64_t place, const void* plane,
                 const Line* lines, int64_t line_count, const int64_t* offsets, int64_t taps);
  // target[pixel][i] = source[pixel * step + index[i] * stride], as float (double).
  void (*gather)(void* target, const char* source, int64_t pixels, int64_t step, int64_t stride,
                 const int32_t* index, int64_t count);
};

const Kernels& scalar_kernels(neq_dtype dtype) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype dtype) noexcept;
const Kernels& avx512_kernels(neq_dtype dtype) noexcept;
#endif

}  // namespace neq::dgrad
