// The two loops of depthwise_wgrad for one instruction set. The file that includes it defines
// NEQ_LOOP, which puts that set on a function, NEQ_LOOP_INLINE likewise, and hands in two kinds of
// types:
//   V  a vector of sums: Scalar, Vector, kLanes, load, store, zero, add, fma(a, b, c) = a * b + c
//      and add_to(double*, Vector)
//   E  an element: Storage, Vectors (its V), load(value) for one of them, load_vector(pointer) for
//      kLanes neighbours and load_even(pointer) for every other of 2 * kLanes;
//      Turned, an E with kSide and turn(to, pitch, from, k, length): to[i * pitch + side] =
//      from[side][k + i] for i < length and side < kSide
#include <cstdint>

#include "depthwise_wgrad.h"

namespace neq::depthwise {
namespace {

template <class V, int kTaps>
NEQ_LOOP void correlate_taps(double* sums, double* bias, const typename V::Scalar* dy,
                             const void* const* x, const Walk& walk) {
  using Scalar = typename V::Scalar;
  const Scalar* source[kTaps];
  typename V::Vector sum[kTaps];
  typename V::Vector total = V::zero();
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) {
    source[t] = static_cast<const Scalar*>(x[t]);
    sum[t] = V::zero();
  }
  for (int64_t unit = 0; unit < walk.units; ++unit) {
    for (int64_t row = 0; row < walk.rows; ++row) {
      const Scalar* gradient = dy + unit * walk.dy.unit + row * walk.dy.row;
      int64_t at = unit * walk.x.unit + row * walk.x.row;
      for (int64_t step = 0; step < walk.steps; ++step) {
        const typename V::Vector g = V::load(gradient);
        __builtin_prefetch(gradient + walk.dy.row);
        total = V::add(total, g);
#pragma GCC unroll 9
        for (int t = 0; t < kTaps; ++t) sum[t] = V::fma(g, V::load(source[t] + at), sum[t]);
        gradient += walk.dy.step;
        at += walk.x.step;
      }
    }
  }
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) V::add_to(sums + t * V::kLanes, sum[t]);
  if (bias) V::add_to(bias, total);
}

template <class V>
void correlate(double* sums, double* bias, const void* dy, const void* const* x, int64_t taps,
               const Walk& walk) {
  static_assert(kMaxTaps == 9);
  constexpr void (*kByTaps[])(double*, double*, const typename V::Scalar*, const void* const*,
                              const Walk&) = {
      correlate_taps<V, 1>, correlate_taps<V, 2>, correlate_taps<V, 3>,
      correlate_taps<V, 4>, correlate_taps<V, 5>, correlate_taps<V, 6>,
      correlate_taps<V, 7>, correlate_taps<V, 8>, correlate_taps<V, 9>};
  kByTaps[taps - 1](sums, bias, static_cast<const typename V::Scalar*>(dy), x, walk);
}

// One row, by whole vectors up to `whole`, which may be beyond its end.
template <class E>
NEQ_LOOP_INLINE void stage_row(typename E::Vectors::Scalar* to, const typename E::Storage* from,
                               int64_t step, int64_t length, int64_t whole) {
  using V = typename E::Vectors;
  int64_t k = 0;
  if (step == 1) {
    for (; k < whole; k += V::kLanes) V::store(to + k, E::load_vector(from + k));
  } else if (step == 2) {
    for (; k < whole; k += V::kLanes) V::store(to + k, E::load_even(from + 2 * k));
  }
  for (; k < length; ++k) to[k] = E::load(from[k * step]);
}

template <class V>
NEQ_LOOP_INLINE void zero_scalars(typename V::Scalar* to, int64_t n) {
  for (int64_t k = 0; k < n; k += V::kLanes) V::store(to + k, V::zero());
}

template <class E>
NEQ_LOOP void stage(void* target, const Place& place, const Rows& rows) {
  using V = typename E::Vectors;
  const Rows r = rows;  // copies that the stores below cannot be suspected to change
  const Place p = place;
  const int64_t step = r.pitch.step;
  const int64_t vectors = step == 1 || step == 2 ? round_up(r.length, V::kLanes) : 0;
  // A row's last vector reads beyond it, unless that is beyond the tensor.
  const int64_t within = vectors ? (r.length - (step - 1)) / V::kLanes * V::kLanes : 0;
  for (int64_t unit = 0; unit < r.units; ++unit) {
    const auto* from = reinterpret_cast<const typename E::Storage*>(r.source) + unit * r.pitch.unit;
    auto* to = static_cast<typename V::Scalar*>(target) + unit * p.unit;
    for (int64_t row = 0; row < r.rows; ++row, from += r.pitch.row, to += p.row) {
      const bool readable = reinterpret_cast<const char*>(from + step * vectors) <= r.readable;
      stage_row<E>(to, from, step, r.length, readable ? vectors : within);
      zero_scalars<V>(to + r.length, p.row_zeros);
    }
    zero_scalars<V>(to - p.row + r.length + p.row_zeros, p.unit_zeros);
  }
}

// Squares of E::kSide lanes and neighbours, turned in registers.
template <class E>
NEQ_LOOP void transpose(void* target, int64_t pitch, const char* source, const int64_t* offsets,
                        int64_t count, int64_t length, const char* readable) {
  using Storage = typename E::Storage;
  constexpr int64_t kSide = E::kSide;
  auto* to = static_cast<typename E::Vectors::Scalar*>(target);
  for (int64_t lane = 0; lane < count; lane += kSide) {
    const int64_t lanes = std::min(kSide, count - lane);
    const Storage* from[kSide];
    const char* last = source;
    for (int64_t side = 0; side < kSide; ++side) {
      const char* const row = source + offsets[lane + std::min(side, lanes - 1)];
      from[side] = reinterpret_cast<const Storage*>(row);
      last = std::max(last, row);
    }
    int64_t k = 0;
    if constexpr (kSide > 1) {
      for (; k < length; k += kSide) {
        if (last + (k + kSide) * static_cast<int64_t>(sizeof(Storage)) > readable) break;
        E::turn(to + k * pitch + lane, pitch, from, k, std::min(kSide, length - k));
      }
    }
    for (; k < length; ++k) {
      for (int64_t side = 0; side < lanes; ++side)
        to[k * pitch + lane + side] = E::load(from[side][k]);
    }
  }
}

template <class E>
constexpr Kernels kKernels = {E::Vectors::kLanes, stage<E>, transpose<typename E::Turned>,
                              correlate<typename E::Vectors>};

}  // namespace
}  // namespace neq::depthwise
