// What the vector loops over rows ask of the memory ahead of time.
#pragma once

#include <cstdint>

namespace neq::moments {

// The next block of `kRows` rows, asked for while this one is summed, by groups of columns. Rows
// side by side are more streams than a processor follows on its own. Rows that lie together are
// asked for in the order of their addresses, which memory answers fastest, others row by row.
//
// Inlined by force: a call that only prefetches looks like one without effect, and is dropped.
template <int64_t kRows, int64_t kGroupBytes>
class Ahead {
 public:
  [[gnu::always_inline]] Ahead(const char* group, int64_t column_bytes, int64_t row_bytes,
                               int64_t along) noexcept {
    const bool together = along == row_bytes;
    at_ = group + kRows * along + (together ? (kRows - 1) * column_bytes : 0);
    step_ = together ? kGroupBytes : along;
  }

  [[gnu::always_inline]] void next() noexcept {
    for (int64_t line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(at_ + line);
    at_ += step_;
  }

 private:
  const char* at_;
  int64_t step_;
};

}  // namespace neq::moments
