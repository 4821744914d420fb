// The portable loops of staging.
#include "vectors_scalar.h"

#define NEQ_LOOP
#define NEQ_LOOP_INLINE inline
#include "staging_loops.h"

namespace neq::staging {
namespace {

template <class E>
struct Single : E {
  static constexpr int64_t kSide = 1;
};

template <class E>
constexpr Kernels kKernels = {copy<E>, transpose<Single<E>>};

}  // namespace

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Elements<Double>>;
    case NEQ_F16:
      return kKernels<Elements<Half>>;
    case NEQ_BF16:
      return kKernels<Elements<BFloat16>>;
    case NEQ_F32:
      break;
  }
  return kKernels<Elements<Float>>;
}

}  // namespace neq::staging
