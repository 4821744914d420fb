// The loop of depthwise_wgrad_staged.h for one instruction set. The file that includes it defines
// NEQ_LOOP, which puts that set on a function, and hands in vectors V: see vectors_<set>.h.
#include <cstdint>

#include "depthwise_wgrad_staged.h"

namespace neq::depthwise {
namespace {

template <class V, int kTaps>
NEQ_LOOP void correlate_taps(double* sums, double* bias, const typename V::Scalar* dy,
                             const void* const* x, int64_t vectors) {
  using Scalar = typename V::Scalar;
  const Scalar* source[kTaps];
  typename V::Vector sum[kTaps];
  typename V::Vector total = V::zero();
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) {
    source[t] = static_cast<const Scalar*>(x[t]);
    sum[t] = V::zero();
  }
  for (int64_t k = 0; k < vectors * V::kLanes; k += V::kLanes) {
    const typename V::Vector g = V::load(dy + k);
    total = V::add(total, g);
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) sum[t] = V::fma(g, V::load(source[t] + k), sum[t]);
  }
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) V::add_to(sums + t * V::kLanes, sum[t]);
  if (bias) V::add_to(bias, total);
}

template <class V>
void correlate(double* sums, double* bias, const void* dy, const void* const* x, int64_t taps,
               int64_t vectors) {
  static_assert(kStagedTaps == 9);
  constexpr void (*kByTaps[])(double*, double*, const typename V::Scalar*, const void* const*,
                              int64_t) = {
      correlate_taps<V, 1>, correlate_taps<V, 2>, correlate_taps<V, 3>,
      correlate_taps<V, 4>, correlate_taps<V, 5>, correlate_taps<V, 6>,
      correlate_taps<V, 7>, correlate_taps<V, 8>, correlate_taps<V, 9>};
  kByTaps[taps - 1](sums, bias, static_cast<const typename V::Scalar*>(dy), x, vectors);
}

template <class V>
constexpr StagedKernels kStaged = {V::kLanes, correlate<V>};

}  // namespace
}  // namespace neq::depthwise
