// The loops of conv_dgrad for one instruction set. The file that includes them defines NEQ_LOOP,
// which puts that set on a function, NEQ_LOOP_INLINE likewise, and hands in the elements E of
// vectors_<set>.h with two functions more, for some of a vector's lanes:
//   move(to, from, count) copies floats (doubles), put(to, from, count) rounds them to elements,
//   put_both(to, even, odd, count) those of two vectors in turn
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "conv_dgrad.h"
#include "tensor.h"

namespace neq::dgrad {
namespace {

// Registers hold all sums, a vector of each column and one of a row.
constexpr bool fits(int64_t rows, int64_t vectors, int64_t registers) noexcept {
  return rows * vectors + vectors + 1 <= registers;
}

// A sum adds up so many products before it joins those of before: in one chain of all of them it
// would round worse than torch's.
constexpr int64_t kChain = 16;

// Stores sums, or adds them to those stored before.
template <class V, int kRows, int kVectors>
NEQ_LOOP_INLINE void store_sums(void* const* sums, const typename V::Vector (&sum)[kRows][kVectors],
                                bool add) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    auto* const to = static_cast<typename V::Scalar*>(sums[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      auto* const at = to + v * V::kLanes;
      V::store(at, add ? V::add(V::load(at), sum[r][v]) : sum[r][v]);
    }
  }
}

template <class V, int kVectors>
NEQ_LOOP_INLINE void load_columns(typename V::Vector (&x)[kVectors],
                                  const typename V::Scalar* columns) {
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    x[v] = V::load(columns + v * V::kLanes);
    V::keep(x[v]);
  }
}

template <class V, int kRows, int kVectors>
NEQ_LOOP_INLINE void clear(typename V::Vector (&sum)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = V::zero();
  }
}

template <class V, int kPanel, int kRows, int kVectors>
NEQ_LOOP void panel_tile(void* const* sums, const typename V::Scalar* panel, int64_t length,
                         const typename V::Scalar* columns) {
  int64_t begin = 0;
  do {
    typename V::Vector sum[kRows][kVectors];
    clear<V>(sum);
    const int64_t end = std::min(begin + kChain, length);
    for (int64_t k = begin; k < end; ++k) {
      typename V::Vector x[kVectors];
      load_columns<V>(x, columns);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const typename V::Vector w = V::broadcast(panel[r]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][v] = V::fma(w, x[v], sum[r][v]);
      }
      panel += kPanel;
      columns += kVectors * V::kLanes;
    }
    store_sums<V>(sums, sum, begin > 0);
    begin = end;
  } while (begin < length);
}

template <class V, int kRows, int kVectors>
NEQ_LOOP void row_tile(void* const* sums, const void* const* rows, const int64_t* offsets,
                       int64_t run_count, int64_t length, const typename V::Scalar* columns) {
  using Scalar = typename V::Scalar;
  int64_t run = 0;
  int64_t k = 0;
  bool add = false;
  do {
    typename V::Vector sum[kRows][kVectors];
    clear<V>(sum);
    for (int64_t left = kChain; left > 0 && run < run_count;) {
      const Scalar* row[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) row[r] = static_cast<const Scalar*>(rows[r]) + offsets[run];
      const int64_t end = std::min(k + left, length);
      left -= end - k;
      for (; k < end; ++k) {
        typename V::Vector x[kVectors];
        load_columns<V>(x, columns);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const typename V::Vector g = V::broadcast(row[r][k]);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sum[r][v] = V::fma(g, x[v], sum[r][v]);
        }
        columns += kVectors * V::kLanes;
      }
      if (k < length) continue;
      k = 0;
      ++run;
    }
    store_sums<V>(sums, sum, add);
    add = true;
  } while (run < run_count);
}

template <class V>
using PanelTile = void (*)(void* const*, const typename V::Scalar*, int64_t,
                           const typename V::Scalar*);
template <class V>
using RowTile = void (*)(void* const*, const void* const*, const int64_t*, int64_t, int64_t,
                         const typename V::Scalar*);

// The tiles for place `kPlace` of a table of all rows and vectors there may be.
template <class V, int kPanel, int kRegisters, int kPlace>
constexpr PanelTile<V> panel_tile_at() noexcept {
  constexpr int kRows = kPlace / kMostVectors + 1;
  constexpr int kVectors = kPlace % kMostVectors + 1;
  if constexpr (!fits(kRows, kVectors, kRegisters)) return nullptr;
  return panel_tile<V, kPanel, kRows, kVectors>;
}

template <class V, int kRegisters, int kPlace>
constexpr RowTile<V> row_tile_at() noexcept {
  constexpr int kRows = kPlace / kMostVectors + 1;
  constexpr int kVectors = kPlace % kMostVectors + 1;
  if constexpr (!fits(kRows, kVectors, kRegisters)) return nullptr;
  return row_tile<V, kRows, kVectors>;
}

template <class V, int kPanel, int kRegisters, int... kPlaces>
constexpr std::array<PanelTile<V>, sizeof...(kPlaces)> panel_tiles(
    std::integer_sequence<int, kPlaces...>) noexcept {
  return {panel_tile_at<V, kPanel, kRegisters, kPlaces>()...};
}

template <class V, int kRegisters, int... kPlaces>
constexpr std::array<RowTile<V>, sizeof...(kPlaces)> row_tiles(
    std::integer_sequence<int, kPlaces...>) noexcept {
  return {row_tile_at<V, kRegisters, kPlaces>()...};
}

template <class V, int kPanel, int kRegisters>
void multiply_panel(void* const* sums, const void* panel, int64_t row_count, int64_t vector_count,
                    int64_t length, const void* columns) {
  static constexpr auto kTiles =
      panel_tiles<V, kPanel, kRegisters>(std::make_integer_sequence<int, kPanel * kMostVectors>());
  using Scalar = typename V::Scalar;
  kTiles[(row_count - 1) * kMostVectors + vector_count - 1](
      sums, static_cast<const Scalar*>(panel), length, static_cast<const Scalar*>(columns));
}

template <class V, int kRegisters>
void multiply_rows(void* const* sums, const void* const* rows, int64_t row_count,
                   int64_t vector_count, const int64_t* offsets, int64_t run_count, int64_t length,
                   const void* columns) {
  static constexpr auto kTiles =
      row_tiles<V, kRegisters>(std::make_integer_sequence<int, kMostRows * kMostVectors>());
  kTiles[(row_count - 1) * kMostVectors + vector_count - 1](
      sums, rows, offsets, run_count, length, static_cast<const typename V::Scalar*>(columns));
}

template <class E>
NEQ_LOOP void store(void* const* rows, int64_t row_count, int64_t step, const void* tile,
                    int64_t pitch, const Segment* segments, int64_t segment_count) {
  using V = typename E::Vectors;
  for (int64_t r = 0; r < row_count; ++r) {
    const auto* const row = static_cast<const typename V::Scalar*>(tile) + r * pitch;
    for (int64_t s = 0; s < segment_count; ++s) {
      const auto* const from = row + segments[s].from;
      auto* const to = static_cast<typename E::Storage*>(rows[r]) + segments[s].to;
      const int64_t count = segments[s].count;
      if (step == 1) {
        for (int64_t k = 0; k < count; k += V::kLanes) {
          E::put(to + k, from + k, std::min(V::kLanes, count - k));
        }
      } else {
        for (int64_t k = 0; k < count; ++k) to[k * step] = E::store(from[k]);
      }
    }
  }
}

template <class E>
NEQ_LOOP void interleave(void* const* rows, int64_t row_count, const void* const* tiles,
                         int64_t pitch, const Segment* segments, int64_t segment_count) {
  using V = typename E::Vectors;
  for (int64_t r = 0; r < row_count; ++r) {
    const auto* const even = static_cast<const typename V::Scalar*>(tiles[0]) + r * pitch;
    const auto* const odd = static_cast<const typename V::Scalar*>(tiles[1]) + r * pitch;
    for (int64_t s = 0; s < segment_count; ++s) {
      const int64_t from = segments[s].from;
      auto* const to = static_cast<typename E::Storage*>(rows[r]) + segments[s].to;
      const int64_t count = segments[s].count;
      for (int64_t k = 0; k < count; k += V::kLanes) {
        E::put_both(to + 2 * k, even + from + k, odd + from + k, std::min(V::kLanes, count - k));
      }
    }
  }
}

template <class E, int kPanel>
NEQ_LOOP void pack_rows(void* panels, int64_t length, int64_t place, const Weights& weights) {
  using Scalar = typename E::Vectors::Scalar;
  const Weights w = weights;  // a copy that the stores below cannot be suspected to change
  const auto* source = reinterpret_cast<const typename E::Storage*>(w.source);
  auto* to = static_cast<Scalar*>(panels) + place * kPanel;
  for (int64_t input = 0; input < w.inputs; input += kPanel) {
    const int64_t rows = std::min<int64_t>(kPanel, w.inputs - input);
    for (int64_t tap = 0; tap < w.taps; ++tap) {
      const auto* const from = source + w.offsets[tap];
      Scalar* const row = to + tap * kPanel;
      if (rows == kPanel && w.stride == 1) {
        for (int r = 0; r < kPanel; ++r) row[r] = E::load(from[r]);
      } else if (rows == kPanel) {
#pragma GCC unroll 8
        for (int r = 0; r < kPanel; ++r) row[r] = E::load(from[r * w.stride]);
      } else {
        for (int64_t r = 0; r < rows; ++r) row[r] = E::load(from[r * w.stride]);
      }
    }
    source += kPanel * w.stride;
    to += length * kPanel;
  }
}

// Width in lanes of a panel, and where the first of its vectors is among all.
struct Panel {
  int64_t first;
  int64_t width;

  static Panel of(const Panels& panels, int64_t panel, int64_t lanes) noexcept {
    const int64_t first = block_start(panel, panels.panels, panels.vectors);
    return {first * lanes, (block_start(panel + 1, panels.panels, panels.vectors) - first) * lanes};
  }
};

template <class E>
NEQ_LOOP_INLINE void pack_vector(typename E::Vectors::Scalar* to, const typename E::Storage* from,
                                 int64_t stride, int64_t count, const char* readable) {
  using V = typename E::Vectors;
  if (stride == 1 && reinterpret_cast<const char*>(from + V::kLanes) <= readable) {
    V::store(to, E::load_vector(from));
    return;
  }
  for (int64_t k = 0; k < count; ++k) to[k] = E::load(from[k * stride]);
  for (int64_t k = count; k < V::kLanes; ++k) to[k] = 0;
}

template <class E>
NEQ_LOOP void pack_columns(void* columns, const Panels& panels, int64_t place, int64_t step,
                           const Weights& weights) {
  using V = typename E::Vectors;
  const Weights w = weights;
  const Panels p = panels;
  const auto* const source = reinterpret_cast<const typename E::Storage*>(w.source);
  for (int64_t n = 0; n < p.panels; ++n) {
    const Panel panel = Panel::of(p, n, V::kLanes);
    auto* const to = static_cast<typename V::Scalar*>(columns) + panel.first * p.length;
    for (int64_t tap = 0; tap < w.taps; ++tap) {
      auto* const row = to + (place + tap * step) * panel.width;
      const auto* const from = source + w.offsets[tap] + panel.first * w.stride;
      for (int64_t k = 0; k < panel.width; k += V::kLanes) {
        const int64_t count = std::min(V::kLanes, w.inputs - panel.first - k);
        pack_vector<E>(row + k, from + k * w.stride, w.stride, count, w.readable);
      }
    }
  }
}

template <class E>
NEQ_LOOP_INLINE void move_line(typename E::Vectors::Scalar* to,
                               const typename E::Vectors::Scalar* from, int64_t count) {
  using V = typename E::Vectors;
  int64_t k = 0;
  for (; k + V::kLanes <= count; k += V::kLanes) V::store(to + k, V::load(from + k));
  if (k < count) E::move(to + k, from + k, count - k);
}

template <class E>
NEQ_LOOP void unfold(void* columns, const Panels& panels, int64_t place, const void* plane,
                     const Line* lines, int64_t line_count, const int64_t* offsets, int64_t taps) {
  using V = typename E::Vectors;
  using Scalar = typename V::Scalar;
  const Panels p = panels;
  auto* const target = static_cast<Scalar*>(columns);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const auto* const source = static_cast<const Scalar*>(plane) + offsets[tap];
    int64_t n = 0;
    Panel panel = Panel::of(p, 0, V::kLanes);
    Scalar* to = target + (place + tap) * panel.width;
    int64_t room = panel.width;
    for (int64_t line = 0; line < line_count; ++line) {
      const Scalar* from = source + lines[line].at;
      for (int64_t left = lines[line].count; left > 0;) {
        if (room == 0) {
          panel = Panel::of(p, ++n, V::kLanes);
          to = target + panel.first * p.length + (place + tap) * panel.width;
          room = panel.width;
        }
        const int64_t count = std::min(left, room);
        move_line<E>(to, from, count);
        to += count;
        from += count;
        room -= count;
        left -= count;
      }
    }
  }
}

// Some pixels at once, so that places of the list are read once for all of them. Lines of pixels
// further on are asked for: which of them are read follows no pattern that a processor would see.
template <class E>
NEQ_LOOP void gather(void* target, const char* source, int64_t pixels, int64_t step, int64_t stride,
                     const int32_t* index, int64_t count) {
  constexpr int kTogether = 4;
  constexpr int64_t kAhead = 12;
  auto* to = static_cast<typename E::Vectors::Scalar*>(target);
  const auto* from = reinterpret_cast<const typename E::Storage*>(source);
  int64_t pixel = 0;
  for (; pixel + kTogether <= pixels; pixel += kTogether) {
    for (int64_t i = 0; i < count; ++i) {
      const auto* const at = from + index[i] * stride;
      const auto ahead = reinterpret_cast<uintptr_t>(at) + kAhead * step * sizeof(*at);
#pragma GCC unroll 4
      for (int k = 0; k < kTogether; ++k) {
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + k * step * sizeof(*at)));
      }
#pragma GCC unroll 4
      for (int k = 0; k < kTogether; ++k) to[k * count + i] = E::load(at[k * step]);
    }
    from += kTogether * step;
    to += kTogether * count;
  }
  for (; pixel < pixels; ++pixel, from += step) {
    for (int64_t i = 0; i < count; ++i) *to++ = E::load(from[index[i] * stride]);
  }
}

template <class E, int kRegisters, int kPlaneRows, int kPixelRows>
constexpr Kernels make_kernels() noexcept {
  using V = typename E::Vectors;
  const auto vectors = [](int64_t rows) {
    return std::min(kMostVectors, (kRegisters - 1) / (rows + 1));
  };
  return {V::kLanes,
          {kPlaneRows, vectors(kPlaneRows)},
          {kPixelRows, vectors(kPixelRows)},
          multiply_panel<V, kPlaneRows, kRegisters>,
          multiply_rows<V, kRegisters>,
          store<E>,
          interleave<E>,
          pack_rows<E, kPlaneRows>,
          pack_columns<E>,
          unfold<E>,
          gather<E>};
}

template <class E, int kRegisters, int kPlaneRows, int kPixelRows>
inline constexpr Kernels kKernels = make_kernels<E, kRegisters, kPlaneRows, kPixelRows>();

}  // namespace
}  // namespace neq::dgrad
