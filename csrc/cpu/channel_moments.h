// channel_moments in three loops, each written once per instruction set. What calls them, on which
// part of the tensors and on which thread is channel_moments.cpp's business and the same for all.
//
// Every product and every sum is fp64: of elements of up to 32 bits the products are then exact,
// nothing overflows, and what differs by a millionth stays apart however long the sums are.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::moments {

// Where the next channel, and the next element of the same channel, lie; in bytes, of either
// tensor.
struct Step {
  int64_t a;
  int64_t b;
};

// `length` elements of each of `channels` channels.
struct Piece {
  const char* a;
  const char* b;
  Step channel;
  Step along;
  int64_t channels;
  int64_t length;
};

// Three rows of sums, `distance` doubles apart: of a*b, of a*a and of b*b, one double per channel.
struct Sums {
  double* data;
  int64_t distance;
};

using Add = void (*)(Sums sums, const Piece& piece);

// Each adds a piece to the sums.
struct Kernels {
  Add rows;     // neighbouring channels are neighbouring elements
  Add runs;     // neighbouring elements belong to one channel
  Add strided;  // anything
};

const Kernels& scalar_kernels(neq_dtype a, neq_dtype b) noexcept;
#if defined(__x86_64__)
const Kernels& avx2_kernels(neq_dtype a, neq_dtype b) noexcept;
const Kernels& avx512_kernels(neq_dtype a, neq_dtype b) noexcept;
#endif

}  // namespace neq::moments
