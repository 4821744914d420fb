// Which lanes of a vector are loaded, and from where.
#pragma once

#include <cstdint>

namespace neq {

struct LaneRange {
  int64_t begin;
  int64_t end;

  bool empty() const noexcept { return begin >= end; }
};

// The memory of a tensor: what lies there may be read, whether or not it is asked for.
struct Readable {
  const char* begin;
  const char* end;

  template <class Storage>
  bool has(const Storage* from, int64_t count) const noexcept {
    const auto at = reinterpret_cast<uintptr_t>(from);
    return at >= reinterpret_cast<uintptr_t>(begin) &&
           at + count * sizeof(Storage) <= reinterpret_cast<uintptr_t>(end);
  }
};

}  // namespace neq
