// The portable loop of conv_wgrad, on vectors of 16 bytes that any compiler maps to what there is.
#include <cstring>

#define NEQ_LOOP
#include "conv_wgrad_loops.h"

namespace neq::conv {
namespace {

template <class T>
struct Portable {
  using Scalar = T;
  typedef T Vector __attribute__((vector_size(16)));
  static constexpr int64_t kLanes = 16 / sizeof(T);
  static constexpr int64_t kRegisters = 16;
  static constexpr int64_t kRows = 4;
  static Vector load(const T* from) noexcept {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static void keep(Vector&) noexcept {}
  static Vector zero() noexcept { return Vector{}; }
  static Vector fma(Vector a, Vector b, Vector c) noexcept { return a * b + c; }
  static T sum(Vector value) noexcept {
    T total = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) total += value[lane];
    return total;
  }
};

}  // namespace

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  return kernels_of<Portable<float>, Portable<double>>(dtype);
}

}  // namespace neq::conv
