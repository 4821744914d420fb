// What tiles of scratch memory are measured by.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace neq {

inline constexpr int64_t kCacheLine = 64;

inline int64_t round_up(int64_t n, int64_t multiple) noexcept {
  return divide_up(n, multiple) * multiple;
}

// The first cache line that starts at `memory` or behind it.
inline char* first_line(char* memory) noexcept {
  return memory + (-reinterpret_cast<uintptr_t>(memory) & (kCacheLine - 1));
}

}  // namespace neq
