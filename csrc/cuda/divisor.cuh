// Division by a number that the host knows.
#pragma once

#include <cstdint>

#include "cuda/common.cuh"

namespace neq::cuda {

// Divides by multiplying: 64-bit division is a function call on a GPU, whose registers spill.
// n / d = high(n * ceil(2^(64+s) / d)) >> s for n < 2^63 and 2^s < d <= 2^(s+1).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t d) : d_(d) {
    if (d < 2) return;
    shift_ = 63 - __builtin_clzll(static_cast<uint64_t>(d - 1));
    const unsigned __int128 one = 1;
    magic_ = static_cast<uint64_t>(((one << (64 + shift_)) + d - 1) / d);
  }

  __device__ int64_t divide(int64_t n) const {
    if (d_ < 2) return n;
    return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n), magic_) >> shift_);
  }

  __host__ __device__ int64_t value() const { return d_; }

 private:
  int64_t d_ = 1;
  uint64_t magic_ = 0;
  int shift_ = 0;
};

}  // namespace neq::cuda
