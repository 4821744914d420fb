// The portable loops of depthwise_wgrad, on vectors of 16 bytes that any compiler maps to what
// there is.
#include <cstring>

#include "element.h"

#define NEQ_LOOP
#define NEQ_LOOP_INLINE inline
#include "depthwise_wgrad_loops.h"

namespace neq::depthwise {
namespace {

template <class T>
struct Portable {
  using Scalar = T;
  typedef T Vector __attribute__((vector_size(16)));
  static constexpr int64_t kLanes = 16 / sizeof(T);
  static Vector load(const T* from) noexcept {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(T* to, Vector value) noexcept { std::memcpy(to, &value, sizeof value); }
  static Vector zero() noexcept { return Vector{}; }
  static Vector add(Vector a, Vector b) noexcept { return a + b; }
  static Vector fma(Vector a, Vector b, Vector c) noexcept { return a * b + c; }
  static void add_to(double* sums, Vector value) noexcept {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += value[lane];
  }
};

template <class Element>
struct Elements : Element {
  using Storage = typename Element::Storage;
  using Vectors = Portable<typename Element::Sum>;
  using Turned = Elements;
  static constexpr int64_t kSide = 1;
  using Vector = typename Vectors::Vector;
  template <int64_t kStep>
  static Vector load_every(const Storage* from) noexcept {
    Vector value;
    for (int64_t k = 0; k < Vectors::kLanes; ++k) value[k] = Element::load(from[k * kStep]);
    return value;
  }
  static Vector load_vector(const Storage* from) noexcept { return load_every<1>(from); }
  static Vector load_even(const Storage* from) noexcept { return load_every<2>(from); }
};

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

}  // namespace neq::depthwise
