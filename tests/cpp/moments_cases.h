// Tensors for channel_moments and what is expected of them, shared by its tests on every device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "check.h"

struct Layout {
  std::vector<int64_t> sizes;
  int32_t dim;
  std::vector<int64_t> order;  // dimensions from the outermost in memory to the innermost
  int64_t step;                // elements between neighbours of the innermost
};

// A tensor that owns its memory, whose values are small whole numbers: every dtype holds them, and
// every sum of them is exact.
struct Owned {
  neq_tensor tensor{};
  std::vector<uint8_t> memory;
  std::vector<double> values;  // by position in memory
  size_t front;

  // `skipped` elements in front put it where wide loads must not start.
  Owned(const Layout& layout, neq_dtype dtype, std::mt19937& random, int64_t skipped = 0)
      : front(skipped) {
    tensor.dtype = dtype;
    tensor.ndim = static_cast<int32_t>(layout.sizes.size());
    std::copy(layout.sizes.begin(), layout.sizes.end(), tensor.size);
    int64_t stride = layout.step;
    int64_t last = 0;
    int64_t count = 1;
    for (auto d = layout.order.rbegin(); d != layout.order.rend(); ++d) {
      tensor.stride[*d] = stride;
      stride *= std::max<int64_t>(tensor.size[*d], 1);
      last += (tensor.size[*d] - 1) * tensor.stride[*d];
      count *= tensor.size[*d];
    }
    values.resize(count ? last + 1 : 0);
    memory.resize((values.size() + front) * bytes());
    std::uniform_int_distribution<int> small(-9, 9);
    for (size_t i = 0; i < values.size(); ++i) put(i, small(random));
    tensor.data = memory.data() + front * bytes();
  }

  size_t bytes() const { return tensor.dtype == NEQ_F64 ? 8 : tensor.dtype == NEQ_F32 ? 4 : 2; }

  void put(size_t i, int value) {
    values[i] = value;
    const auto single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    uint16_t narrow = static_cast<uint16_t>(bits >> 16);  // exact: at most four digits
    if (tensor.dtype == NEQ_F16) {
      const uint32_t magnitude = bits & 0x7fffffffu;
      narrow = static_cast<uint16_t>((bits >> 16 & 0x8000u) |
                                     (magnitude ? (magnitude - 0x38000000u) >> 13 : 0));
    }
    const double wide = value;
    const void* from = tensor.dtype == NEQ_F64   ? static_cast<const void*>(&wide)
                       : tensor.dtype == NEQ_F32 ? static_cast<const void*>(&single)
                                                 : static_cast<const void*>(&narrow);
    std::memcpy(memory.data() + (front + i) * bytes(), from, bytes());
  }

  double at(const std::vector<int64_t>& place) const {
    int64_t offset = 0;
    for (int32_t d = 0; d < tensor.ndim; ++d) offset += place[d] * tensor.stride[d];
    return values[offset];
  }
};

inline std::vector<double> expected(const Owned& a, const Owned& b, int32_t dim, bool per_sample) {
  const neq_tensor& shape = a.tensor;
  const int64_t samples = per_sample ? shape.size[0] : 1;
  const int64_t rows = samples * shape.size[dim];
  std::vector<double> moments(3 * rows, 0.0);
  std::vector<int64_t> place(shape.ndim, 0);
  if (std::find(shape.size, shape.size + shape.ndim, 0) != shape.size + shape.ndim) return moments;
  for (bool more = true; more;) {
    const int64_t row = (per_sample ? place[0] * shape.size[dim] : 0) + place[dim];
    const double left = a.at(place);
    const double right = b.at(place);
    moments[row] += left * right;
    moments[row + rows] += left * left;
    moments[row + 2 * rows] += right * right;
    more = false;
    for (int32_t d = shape.ndim - 1; d >= 0 && !more; --d) {
      more = ++place[d] < shape.size[d];
      if (!more) place[d] = 0;
    }
  }
  return moments;
}

inline const std::vector<Layout> kLayouts = {
    {{300, 64}, 1, {0, 1}, 1},              // [tokens, C]
    {{1000, 3}, 1, {0, 1}, 1},              // narrow rows, folded
    {{1500, 96}, 1, {0, 1}, 1},             // several blocks
    {{50, 700}, 1, {0, 1}, 1},              // wide rows
    {{37, 19}, 1, {0, 1}, 2},               // every other element
    {{37, 19}, 1, {1, 0}, 1},               // transposed
    {{3, 17, 5, 7}, 1, {0, 1, 2, 3}, 1},    // NCHW
    {{3, 33, 15, 7}, 1, {0, 2, 3, 1}, 1},   // channels_last
    {{1, 3, 190, 90}, 1, {0, 1, 2, 3}, 1},  // planes longer than a piece
    {{2, 19, 3, 4, 5}, 1, {0, 2, 3, 4, 1}, 1},
    {{2, 300, 9}, 2, {0, 1, 2}, 1},
    {{0, 8, 3}, 1, {0, 1, 2}, 1},
    {{4, 0, 3}, 1, {0, 1, 2}, 1},
    {{4, 8, 0}, 1, {0, 1, 2}, 1},
    {{9}, 0, {0}, 1},
    {{1, 1}, 1, {0, 1}, 1},
};

inline constexpr std::pair<neq_dtype, neq_dtype> kDtypes[] = {
    {NEQ_F32, NEQ_F32},   {NEQ_F64, NEQ_F64}, {NEQ_F16, NEQ_F16},
    {NEQ_BF16, NEQ_BF16}, {NEQ_F16, NEQ_F32}, {NEQ_F64, NEQ_BF16}};
