// From two dtypes, known when a kernel is called, to the loops compiled for that pair.
#pragma once

#include "channel_moments.h"

namespace neq::moments {

// `Loops<A, B>` must have rows, runs and strided; the element types come in the order of neq_dtype.
template <template <class, class> class Loops, class F32, class F64, class F16, class BF16>
class Table {
 public:
  static const Kernels& of(neq_dtype a, neq_dtype b) noexcept {
    switch (a) {
      case NEQ_F64:
        return with<F64>(b);
      case NEQ_F16:
        return with<F16>(b);
      case NEQ_BF16:
        return with<BF16>(b);
      case NEQ_F32:
        break;
    }
    return with<F32>(b);
  }

 private:
  template <class A>
  static const Kernels& with(neq_dtype b) noexcept {
    switch (b) {
      case NEQ_F64:
        return kKernels<A, F64>;
      case NEQ_F16:
        return kKernels<A, F16>;
      case NEQ_BF16:
        return kKernels<A, BF16>;
      case NEQ_F32:
        break;
    }
    return kKernels<A, F32>;
  }

  template <class A, class B>
  static constexpr Kernels kKernels = {Loops<A, B>::rows, Loops<A, B>::runs, Loops<A, B>::strided};
};

}  // namespace neq::moments
