// Vectors of 16 bytes, which any compiler maps to what there is, as the loops of several operators
// use them, for the files of this set alone.
// V, a vector of sums: Scalar, Vector, kLanes, load, store, zero, broadcast(Scalar), add,
//   fma(a, b, c) = a * b + c, add_to(double*, Vector), sum(Vector), of its lanes,
//   add_sums(to, a, b, c, d), to[0] += sum(a) to to[3] += sum(d), and keep(Vector&), for a
//   register's sake: the compiler then does not load the vector again where it is used
// E, an element: Storage, Vectors (its V), load(value) for one of them, load_vector(pointer) for
//   kLanes neighbours and load_even(pointer) for every other of 2 * kLanes;
//   Lanes, EvenLanes: some of a vector's lanes, of which load(pointer, lanes, readable) touches
//   no other element, and leaves zeros in the others
#pragma once

#include <cstring>

#include "element.h"
#include "lanes.h"

namespace neq {
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
  static void keep(Vector&) noexcept {}
  static Vector zero() noexcept { return Vector{}; }
  static Vector broadcast(T value) noexcept { return Vector{} + value; }
  static Vector add(Vector a, Vector b) noexcept { return a + b; }
  static Vector fma(Vector a, Vector b, Vector c) noexcept { return a * b + c; }
  static void add_to(double* sums, Vector value) noexcept {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += value[lane];
  }
  static double total(Vector value) noexcept {
    double all = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) all += value[lane];
    return all;
  }
  static T sum(Vector value) noexcept {
    T total = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) total += value[lane];
    return total;
  }
  static void add_sums(T* to, Vector a, Vector b, Vector c, Vector d) noexcept {
    to[0] += sum(a);
    to[1] += sum(b);
    to[2] += sum(c);
    to[3] += sum(d);
  }
};

template <int64_t kStep>
struct StepLanes {
  LaneRange range;
  StepLanes() = default;
  explicit StepLanes(LaneRange lanes) : range(lanes) {}
};

template <class Element>
struct Elements : Element {
  using Storage = typename Element::Storage;
  using Vectors = Portable<typename Element::Sum>;
  using Vector = typename Vectors::Vector;
  template <int64_t kStep>
  static Vector load_every(const Storage* from) noexcept {
    Vector value;
    for (int64_t k = 0; k < Vectors::kLanes; ++k) value[k] = Element::load(from[k * kStep]);
    return value;
  }
  static Vector load_vector(const Storage* from) noexcept { return load_every<1>(from); }
  static Vector load_even(const Storage* from) noexcept { return load_every<2>(from); }
  using Lanes = StepLanes<1>;
  using EvenLanes = StepLanes<2>;
  template <int64_t kStep>
  static Vector load(const Storage* from, const StepLanes<kStep>& lanes, const Readable&) noexcept {
    if (lanes.range.begin == 0 && lanes.range.end == Vectors::kLanes)
      return load_every<kStep>(from);
    Vector value{};
    for (int64_t k = lanes.range.begin; k < lanes.range.end; ++k) {
      value[k] = Element::load(from[k * kStep]);
    }
    return value;
  }
  using Element::load;
};

}  // namespace
}  // namespace neq
