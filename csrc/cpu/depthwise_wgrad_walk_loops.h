// The loop of depthwise_wgrad_walk.h for one instruction set. The file that includes it defines
// NEQ_LOOP, which puts that set on a function, and hands in elements E: see vectors_<set>.h.
#include <cstdint>
#include <type_traits>

#include "depthwise_wgrad_walk.h"

namespace neq::depthwise {
namespace {

// Inlined by force: a call that only prefetches looks like one without effect.
[[gnu::always_inline]] inline void fetch(const void* from) { __builtin_prefetch(from, 0, 2); }

template <class E, int kAcross, int kAlong, int kStride, int kStep>
NEQ_LOOP void walk_lines(void* sums, void* bias, const Walk& walk) {
  using V = typename E::Vectors;
  using Storage = typename E::Storage;
  using Vector = typename V::Vector;
  using XLanes = std::conditional_t<kStep == 1, typename E::Lanes, typename E::EvenLanes>;
  constexpr int kNextLine = 64 / sizeof(Storage);
  constexpr int kBehind = (kAlong - 1) / kStride;
  const Walk w = walk;
  auto* const target = static_cast<typename V::Scalar*>(sums);
  const typename E::Lanes dy_lanes(w.dy_lanes);
  XLanes x_lanes[kAcross];
  Vector sum[kAcross][kAlong];
  Vector total = V::zero();
#pragma GCC unroll 3
  for (int o = 0; o < kAcross; ++o) {
    x_lanes[o] = XLanes(w.x_lanes[o]);
#pragma GCC unroll 3
    for (int a = 0; a < kAlong; ++a) {
      sum[o][a] = V::load(target + o * w.sums_across + a * w.sums_along);
    }
  }
  for (int64_t line = 0; line < w.lines; ++line) {
    const Storage* gradient = reinterpret_cast<const Storage*>(w.dy) + line * w.dy_line;
    const Storage* image = reinterpret_cast<const Storage*>(w.x) + line * w.x_line;
    Vector g[kBehind + 1];
#pragma GCC unroll 3
    for (int m = 0; m <= kBehind; ++m) g[m] = V::zero();
    int64_t position = -w.begin;
    for (int64_t step = 0; step < w.steps + kBehind; ++step) {
#pragma GCC unroll 3
      for (int m = kBehind; m > 0; --m) g[m] = g[m - 1];
      if (kBehind == 0 || step < w.steps) {
        g[0] = E::load(gradient, dy_lanes, w.dy_memory);
        total = V::add(total, g[0]);
        fetch(gradient + w.dy_ahead);
        gradient += w.dy_step;
      } else {
        g[0] = V::zero();
      }
#pragma GCC unroll 2
      for (int rho = 0; rho < kStride; ++rho, ++position) {
        if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(w.count)) continue;
#pragma GCC unroll 3
        for (int o = 0; o < kAcross; ++o) {
          const Vector x = E::load(image + o * w.x_across, x_lanes[o], w.x_memory);
#pragma GCC unroll 3
          for (int m = 0; rho + m * kStride < kAlong; ++m) {
            Vector& to = sum[o][rho + m * kStride];
            to = V::fma(g[m], x, to);
          }
        }
        fetch(image + w.x_ahead);
        if (kStep == 2) fetch(image + w.x_ahead + kNextLine);
        image += w.x_step;
      }
    }
  }
#pragma GCC unroll 3
  for (int o = 0; o < kAcross; ++o) {
#pragma GCC unroll 3
    for (int a = 0; a < kAlong; ++a) {
      V::store(target + o * w.sums_across + a * w.sums_along, sum[o][a]);
    }
  }
  if (!bias) return;
  auto* const biases = static_cast<typename V::Scalar*>(bias);
  V::store(biases, V::add(V::load(biases), total));
}

template <class V>
NEQ_LOOP void add_lanes(double* totals, void* sums, int64_t n) {
  auto* from = static_cast<typename V::Scalar*>(sums);
  for (int64_t k = 0; k < n; ++k, from += V::kLanes) {
    totals[k] += V::total(V::load(from));
    V::store(from, V::zero());
  }
}

template <class E, int kAcross, int kAlong, int kStride>
constexpr WalkLoops kLoops = {walk_lines<E, kAcross, kAlong, kStride, 1>,
                              walk_lines<E, kAcross, kAlong, kStride, 2>};

template <class E>
constexpr WalkKernels kWalks = {E::Vectors::kLanes,
                                {{{kLoops<E, 1, 1, 1>, kLoops<E, 1, 1, 1>},
                                  {kLoops<E, 1, 2, 1>, kLoops<E, 1, 2, 2>},
                                  {kLoops<E, 1, 3, 1>, kLoops<E, 1, 3, 2>}},
                                 {{kLoops<E, 2, 1, 1>, kLoops<E, 2, 1, 1>},
                                  {kLoops<E, 2, 2, 1>, kLoops<E, 2, 2, 2>},
                                  {kLoops<E, 2, 3, 1>, kLoops<E, 2, 3, 2>}},
                                 {{kLoops<E, 3, 1, 1>, kLoops<E, 3, 1, 1>},
                                  {kLoops<E, 3, 2, 1>, kLoops<E, 3, 2, 2>},
                                  {kLoops<E, 3, 3, 1>, kLoops<E, 3, 3, 2>}}},
                                add_lanes<typename E::Vectors>};

}  // namespace
}  // namespace neq::depthwise
