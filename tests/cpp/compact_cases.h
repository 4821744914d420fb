// Masks and velocities for compact and what is expected of them, shared by its tests on every
// device.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"

// Either device's function, without its stream.
using Compact = neq_status (*)(const neq_choice*, int64_t, int32_t, double, int32_t*);

template <class T, class Active>
void check_lists(Compact compact, const std::vector<std::vector<T>>& layers, int32_t kind,
                 double epsilon, Active active) {
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
  CHECK(compact(choices.data(), static_cast<int64_t>(choices.size()), kind, epsilon,
                lists.data()) == NEQ_OK);
  CHECK(lists == expected);
}

inline const std::vector<int64_t> kSizes = {5, 0, 1, 64, 1000, 3};

inline void check_masks(Compact compact) {
  std::mt19937 random(7);
  for (const double share : {0.0, 0.3, 1.0}) {
    std::bernoulli_distribution flip(share);
    std::vector<std::vector<uint8_t>> layers;
    for (const int64_t size : kSizes) {
      layers.emplace_back(size);
      for (uint8_t& flag : layers.back()) flag = flip(random) ? 1 : 0;
    }
    check_lists(compact, layers, NEQ_MASK, NAN, [](uint8_t flag) { return flag != 0; });
  }
}

template <class T>
void check_velocities(Compact compact, int32_t kind) {
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
    check_lists(compact, layers, kind, epsilon,
                [=](T velocity) { return std::fabs(velocity) >= edge; });
  }
}
