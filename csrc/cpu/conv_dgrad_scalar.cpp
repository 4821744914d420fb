// The portable loops of conv_dgrad.
#include "vectors_scalar.h"

#define NEQ_LOOP
#define NEQ_LOOP_INLINE inline
#include "conv_dgrad_loops.h"

namespace neq::dgrad {
namespace {

template <class Element>
struct Some : Elements<Element> {
  using Scalar = typename Element::Sum;
  static void move(Scalar* to, const Scalar* from, int64_t count) noexcept {
    for (int64_t k = 0; k < count; ++k) to[k] = from[k];
  }
  static void put(typename Element::Storage* to, const Scalar* from, int64_t count) noexcept {
    for (int64_t k = 0; k < count; ++k) to[k] = Element::store(from[k]);
  }
  static void put_both(typename Element::Storage* to, const Scalar* even, const Scalar* odd,
                       int64_t count) noexcept {
    for (int64_t k = 0; k < count; ++k) {
      to[2 * k] = Element::store(even[k]);
      to[2 * k + 1] = Element::store(odd[k]);
    }
  }
};

template <class Element>
constexpr const Kernels& kOf = kKernels<Some<Element>, 16, 4, 4>;

}  // namespace

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kOf<Double>;
    case NEQ_F16:
      return kOf<Half>;
    case NEQ_BF16:
      return kOf<BFloat16>;
    case NEQ_F32:
      break;
  }
  return kOf<Float>;
}

}  // namespace neq::dgrad
