// The loops of depthwise_wgrad_lanes_walk.h for one instruction set. The file that includes it
// defines NEQ_LOOP, which puts that set on a function, NEQ_LOOP_INLINE likewise, and hands in
// elements E: see vectors_<set>.h.
#include <cstdint>

#include "depthwise_wgrad_lanes_walk.h"

namespace neq::depthwise {
namespace {

// Inlined by force: a call that only prefetches looks like one without effect.
[[gnu::always_inline]] inline void fetch_near(const void* from) { __builtin_prefetch(from, 0, 3); }

// The sums of a walk, and where in a line it is.
template <class E, int kAcross, int kAlong, int kStride, int kBeside>
struct LanesSums {
  using V = typename E::Vectors;
  using Scalar = typename V::Scalar;
  using Storage = typename E::Storage;
  using Vector = typename V::Vector;
  static constexpr int kBehind = (kAlong - 1) / kStride;
  static constexpr int64_t kBytes = sizeof(Storage);

  typename E::Lanes lanes[kBeside];
  Vector sum[kBeside][kAcross][kAlong];
  Vector total[kBeside];
  Vector g[kBeside][kBehind + 1];  // the last vectors of dy, the latest first
  const char* gradient;
  const char* image;
  // Bytes.
  int64_t across;
  int64_t beside;
  int64_t dy_step;
  int64_t x_step;
  int64_t dy_ahead[kBeside];
  int64_t x_ahead[kBeside];

  NEQ_LOOP_INLINE void start(const LanesWalk& w) {
    across = w.dilation * w.x_row * kBytes;
    beside = w.beside * kBytes;
    dy_step = w.dy_step * kBytes;
    x_step = w.x_step * kBytes;
#pragma GCC unroll 2
    for (int v = 0; v < kBeside; ++v) {
      lanes[v] = typename E::Lanes(w.lanes[v]);
      total[v] = V::zero();
      dy_ahead[v] = w.dy_ahead[v] * kBytes;
      const auto* const sums = reinterpret_cast<const Scalar*>(w.sums[v]);
#pragma GCC unroll 3
      for (int o = 0; o < kAcross; ++o) {
#pragma GCC unroll 3
        for (int a = 0; a < kAlong; ++a) {
          sum[v][o][a] = V::load(sums + o * w.sums_across + a * w.sums_along);
        }
      }
    }
  }

  NEQ_LOOP_INLINE void finish(const LanesWalk& w) const {
#pragma GCC unroll 2
    for (int v = 0; v < kBeside; ++v) {
      auto* const sums = reinterpret_cast<Scalar*>(w.sums[v]);
#pragma GCC unroll 3
      for (int o = 0; o < kAcross; ++o) {
#pragma GCC unroll 3
        for (int a = 0; a < kAlong; ++a) {
          V::store(sums + o * w.sums_across + a * w.sums_along, sum[v][o][a]);
        }
      }
      if (w.bias) V::store(sums + w.bias, V::add(V::load(sums + w.bias), total[v]));
    }
  }

  NEQ_LOOP_INLINE void load_dy(const LanesWalk& w, bool any) {
#pragma GCC unroll 2
    for (int v = 0; v < kBeside; ++v) {
#pragma GCC unroll 3
      for (int m = kBehind; m > 0; --m) g[v][m] = g[v][m - 1];
      g[v][0] = V::zero();
    }
    if (!any) return;
#pragma GCC unroll 2
    for (int v = 0; v < kBeside; ++v) {
      g[v][0] =
          E::load(reinterpret_cast<const Storage*>(gradient + v * beside), lanes[v], w.dy_memory);
      total[v] = V::add(total[v], g[v][0]);
      fetch_near(gradient + dy_ahead[v]);
    }
    gradient += dy_step;
  }

  // The taps across from `first` to `last` meet a position of x, the first one at `image`.
  NEQ_LOOP_INLINE void meet(const LanesWalk& w, int rho, int first, int last) {
#pragma GCC unroll 2
    for (int v = 0; v < kBeside; ++v) {
#pragma GCC unroll 3
      for (int o = 0; o < kAcross; ++o) {
        if (o < first || o >= last) continue;
        const char* const at = image + v * beside + (o - first) * across;
        const Vector x = E::load(reinterpret_cast<const Storage*>(at), lanes[v], w.x_memory);
#pragma GCC unroll 3
        for (int m = 0; rho + m * kStride < kAlong; ++m) {
          Vector& to = sum[v][o][rho + m * kStride];
          to = V::fma(g[v][m], x, to);
        }
      }
      fetch_near(image + x_ahead[v]);
      if (kStride == 2) fetch_near(image + x_ahead[v] + across);
    }
    image += x_step;
  }

  NEQ_LOOP_INLINE void walk_line(const LanesWalk& w, int64_t sample, int64_t line) {
    // The taps across that reach a row of x.
    const int64_t top = w.top + line * w.down;
    int first = 0;
    int last = kAcross;
    while (first < kAcross && top + first * w.dilation < 0) ++first;
    while (last > first && top + (last - 1) * w.dilation >= w.rows) --last;
    const int64_t count = first < last ? w.count : 0;
    const int64_t row = count > 0 ? (top + first * w.dilation) * w.x_row : 0;
    gradient = w.dy + (sample * w.dy_batch + line * w.dy_line) * kBytes;
    image = w.x + (sample * w.x_batch + row) * kBytes;
#pragma GCC unroll 2
    for (int v = 0; v < kBeside; ++v) {
      x_ahead[v] = w.x_ahead[v] * kBytes - first * across;
#pragma GCC unroll 3
      for (int m = 0; m <= kBehind; ++m) g[v][m] = V::zero();
    }
    // The steps at which both dy and all that they meet exist.
    const bool all = first == 0 && last == kAcross;
    const int64_t from = (w.begin + kStride - 1) / kStride;
    const int64_t to = all ? std::min(w.steps, (w.begin + count) / kStride) : from;
    for (int64_t step = 0; step < w.steps + kBehind; ++step) {
      if (step == from) {
        for (; step < to; ++step) {
          load_dy(w, true);
#pragma GCC unroll 2
          for (int rho = 0; rho < kStride; ++rho) meet(w, rho, 0, kAcross);
        }
        if (step >= w.steps + kBehind) break;
      }
      load_dy(w, step < w.steps);
#pragma GCC unroll 2
      for (int rho = 0; rho < kStride; ++rho) {
        const int64_t position = step * kStride + rho - w.begin;
        if (position >= 0 && position < count) meet(w, rho, first, last);
      }
    }
  }
};

template <class E, int kAcross, int kAlong, int kStride, int kBeside>
NEQ_LOOP void walk_lanes(const LanesWalk& w) {
  LanesSums<E, kAcross, kAlong, kStride, kBeside> sums;
  sums.start(w);
  for (int64_t sample = 0; sample < w.samples; ++sample) {
    for (int64_t line = 0; line < w.lines; ++line) sums.walk_line(w, sample, line);
  }
  sums.finish(w);
}

template <class V>
NEQ_LOOP void add_each(double* totals, void* sums, int64_t n) {
  auto* from = static_cast<typename V::Scalar*>(sums);
  for (int64_t k = 0; k < n; ++k, from += V::kLanes, totals += V::kLanes) {
    V::add_to(totals, V::load(from));
    V::store(from, V::zero());
  }
}

// As many side by side as there are, so that kBeside of 1 instantiates no others.
template <class E, int kAcross, int kAlong, int kStride, int kBeside>
constexpr LanesLoop lanes_loop(int64_t beside) {
  if (beside == 1) return walk_lanes<E, kAcross, kAlong, kStride, 1>;
  if constexpr (kBeside > 1) return walk_lanes<E, kAcross, kAlong, kStride, kBeside>;
  return nullptr;
}

template <class E, int kAcross, int kAlong, int kStride, int kBeside>
constexpr LanesLoops kLanesLoops = {{lanes_loop<E, kAcross, kAlong, kStride, kBeside>(1),
                                     lanes_loop<E, kAcross, kAlong, kStride, kBeside>(2)}};

template <class E, int kBeside>
constexpr LanesKernels kLanes = {
    E::Vectors::kLanes,
    kBeside,
    {{{kLanesLoops<E, 1, 1, 1, kBeside>, kLanesLoops<E, 1, 1, 1, kBeside>},
      {kLanesLoops<E, 1, 2, 1, kBeside>, kLanesLoops<E, 1, 2, 2, kBeside>},
      {kLanesLoops<E, 1, 3, 1, kBeside>, kLanesLoops<E, 1, 3, 2, kBeside>}},
     {{kLanesLoops<E, 2, 1, 1, kBeside>, kLanesLoops<E, 2, 1, 1, kBeside>},
      {kLanesLoops<E, 2, 2, 1, kBeside>, kLanesLoops<E, 2, 2, 2, kBeside>},
      {kLanesLoops<E, 2, 3, 1, kBeside>, kLanesLoops<E, 2, 3, 2, kBeside>}},
     {{kLanesLoops<E, 3, 1, 1, kBeside>, kLanesLoops<E, 3, 1, 1, kBeside>},
      {kLanesLoops<E, 3, 2, 1, kBeside>, kLanesLoops<E, 3, 2, 2, kBeside>},
      {kLanesLoops<E, 3, 3, 1, kBeside>, kLanesLoops<E, 3, 3, 2, kBeside>}}},
    add_each<typename E::Vectors>};

}  // namespace
}  // namespace neq::depthwise
