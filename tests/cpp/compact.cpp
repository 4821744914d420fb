// neq_compact_cpu against a loop, in buffers of exactly the right size.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"

namespace {

template <class T, class Active>
void check_lists(const std::vector<std::vector<T>>& layers, int32_t kind, double epsilon,
                 Active active) {
  std::vector<neq_choice> choices;
  std::vector<int32_t> expected(layers.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::vector<T>& layer = layers[l];
    choices.push_back({layer.data(), static_cast<int64_t>(layer.size())});
    const size_t start = expected.size();
    for (size_t c = 0; c < layer.size(); ++c) {
      if (active(layer[c])) expected.push_back(static_cast<int32_t>(c));
    }
    expected[l] = static_cast<int32_t>(expected.size() - start);
    expected.resize(start + layer.size(), -1);
  }
  std::vector<int32_t> lists(expected.size(), 12345);
  CHECK(neq_compact_cpu(choices.data(), static_cast<int64_t>(choices.size()), kind, epsilon,
                        lists.data()) == NEQ_OK);
  CHECK(lists == expected);
}

const std::vector<int64_t> kSizes = {5, 0, 1, 64, 1000, 3};

void check_masks() {
  std::mt19937 random(7);
  for (const double share : {0.0, 0.3, 1.0}) {
    std::bernoulli_distribution flip(share);
    std::vector<std::vector<uint8_t>> layers;
    for (const int64_t size : kSizes) {
      layers.emplace_back(size);
      for (uint8_t& flag : layers.back()) flag = flip(random) ? 1 : 0;
    }
    check_lists(layers, NEQ_MASK, NAN, [](uint8_t flag) { return flag != 0; });
  }
}

template <class T>
void check_velocities(int32_t kind) {
  std::mt19937 random(7);
  std::normal_distribution<T> normal;
  for (const double epsilon : {0.0, 0.7, 0.3, static_cast<double>(INFINITY)}) {
    const T edge = static_cast<T>(epsilon);
    std::vector<std::vector<T>> layers = {
        {edge, -edge, std::nextafter(edge, T{-1}), T{NAN}, T{INFINITY}, T{-0.0}}};
    for (const int64_t size : kSizes) {
      layers.emplace_back(size);
      for (T& velocity : layers.back()) velocity = normal(random);
    }
    check_lists(layers, kind, epsilon, [=](T velocity) { return std::fabs(velocity) >= edge; });
  }
}

void check_refusals() {
  const uint8_t mask[3] = {1, 0, 1};
  std::vector<int32_t> lists(4, 7);
  const auto call = [&](neq_choice layer, int32_t kind, double epsilon) {
    return neq_compact_cpu(&layer, 1, kind, epsilon, lists.data());
  };
  CHECK(neq_compact_cpu(nullptr, 0, NEQ_MASK, 0, nullptr) == NEQ_OK);
  CHECK(call({nullptr, 0}, NEQ_MASK, 0) == NEQ_OK);
  CHECK(lists[0] == 0);
  lists[0] = 7;
  CHECK_REFUSED(neq_compact_cpu(nullptr, 1, NEQ_MASK, 0, lists.data()), "layers: expected");
  CHECK_REFUSED(neq_compact_cpu(nullptr, -1, NEQ_MASK, 0, lists.data()), "layers: expected");
  CHECK_REFUSED(call({mask, -1}, NEQ_MASK, 0), "expected 0 to 2147483647 channels, got -1");
  CHECK_REFUSED(call({mask, INT64_MAX}, NEQ_MASK, 0), "expected 0 to 2147483647 channels");
  CHECK_REFUSED(call({nullptr, 3}, NEQ_MASK, 0), "layers: expected data");
  CHECK_REFUSED(call({mask, 3}, 3, 0), "kind: expected");
  CHECK_REFUSED(call({mask, 3}, -1, 0), "kind: expected");
  CHECK_REFUSED(call({mask, 0}, NEQ_VELOCITY_F32, -1), "epsilon: expected a number >= 0");
  CHECK_REFUSED(call({mask, 0}, NEQ_VELOCITY_F64, NAN), "epsilon: expected a number >= 0");
  const neq_choice layer = {mask, 3};
  CHECK_REFUSED(neq_compact_cpu(&layer, 1, NEQ_MASK, 0, nullptr), "lists: expected memory");
  CHECK(lists == std::vector<int32_t>(4, 7));
}

}  // namespace

int main() {
  check_masks();
  check_velocities<float>(NEQ_VELOCITY_F32);
  check_velocities<double>(NEQ_VELOCITY_F64);
  check_refusals();
  std::puts("compact: ok");
}
