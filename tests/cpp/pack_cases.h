// What the tests of pack_channels share, on the CPU and on the emulated GPU: layouts, tensors in
// buffers of exactly the right size, and the loop nest that decides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/element.h"
#include "tensor.h"

struct Layout {
  std::vector<int64_t> sizes;
  int32_t dim;
  std::vector<int64_t> order;  // dimensions from the outermost in memory to the innermost
  int64_t step;                // elements between neighbours of the innermost
  // Of what dy was cut from: how much longer each dimension is there, if it was.
  std::vector<int64_t> beyond = {};
};

inline std::vector<Layout> pack_layouts() {
  return {
      {{300, 64}, 1, {0, 1}, 1},  // [tokens, C]
      {{1000, 3}, 1, {0, 1}, 1},  // fewer channels than lanes
      {{90, 11}, 1, {0, 1}, 1},   // than those of AVX-512
      {{50, 200}, 1, {0, 1}, 1},
      {{9, 700}, 1, {0, 1}, 1},                    // more words in a row than a block has threads
      {{5, 4100}, 1, {0, 1}, 1},                   // and so many that a row is summed in parts
      {{37, 19}, 1, {0, 1}, 2},                    // every other element
      {{37, 19}, 1, {1, 0}, 1},                    // transposed
      {{60, 24}, 1, {0, 1}, 1, {0, 7}},            // columns of a wider matrix
      {{3, 17, 5, 7}, 1, {0, 1, 2, 3}, 1},         // NCHW
      {{70, 6, 4, 4}, 1, {0, 1, 2, 3}, 1},         // planes of whole vectors
      {{40, 7, 6, 6}, 1, {0, 1, 2, 3}, 1},         // planes of whole words
      {{24, 16, 16}, 1, {0, 1, 2}, 1, {0, 0, 1}},  // only the channels lie askew
      {{3, 33, 5, 7}, 1, {0, 2, 3, 1}, 1},         // channels_last
      {{2, 5, 90, 90}, 1, {0, 1, 2, 3}, 1},        // planes longer than a run
      {{2, 4, 67, 61}, 1, {0, 1, 2, 3}, 1},        // the same, of odd length
      {{1, 170, 10, 10}, 1, {0, 1, 2, 3}, 1},      // many active planes together are one copy
      {{3, 8, 9, 10}, 1, {0, 1, 2, 3}, 1, {0, 0, 2, 2}},  // cropped
      {{2, 20, 5, 6}, 1, {0, 2, 3, 1}, 1, {0, 3, 1, 2}},  // cropped channels_last
      {{2, 19, 3, 4, 5}, 1, {0, 2, 3, 4, 1}, 1},
      {{2, 300, 9}, 2, {0, 1, 2}, 1},
      {{0, 8, 3}, 1, {0, 1, 2}, 1},
      {{4, 0, 3}, 1, {0, 1, 2}, 1},
      {{9}, 0, {0}, 1},
      {{1}, 0, {0}, 1},
  };
}

inline neq_tensor shape(const Layout& layout, neq_dtype dtype, int64_t channels, int64_t step) {
  neq_tensor tensor{};
  tensor.dtype = dtype;
  tensor.ndim = static_cast<int32_t>(layout.sizes.size());
  std::copy(layout.sizes.begin(), layout.sizes.end(), tensor.size);
  tensor.size[layout.dim] = channels;
  int64_t stride = step;
  for (auto d = layout.order.rbegin(); d != layout.order.rend(); ++d) {
    tensor.stride[*d] = stride;
    stride *= std::max<int64_t>(tensor.size[*d], 1);
  }
  return tensor;
}

// dy itself, with the strides of what it was cut from.
inline neq_tensor dy_shape(const Layout& layout, neq_dtype dtype) {
  Layout whole = layout;
  for (size_t d = 0; d < layout.beyond.size(); ++d) whole.sizes[d] += layout.beyond[d];
  neq_tensor tensor = shape(whole, dtype, whole.sizes[layout.dim], layout.step);
  std::copy(layout.sizes.begin(), layout.sizes.end(), tensor.size);
  return tensor;
}

inline int64_t numel(const neq_tensor& tensor) {
  int64_t count = 1;
  for (int32_t d = 0; d < tensor.ndim; ++d) count *= tensor.size[d];
  return count;
}

// Exactly the bytes from the first to the last element, behind `skipped` others: NaN, all of them.
inline std::vector<uint8_t> memory(const neq_tensor& tensor, int64_t skipped = 0) {
  if (numel(tensor) == 0) return {};
  int64_t last = skipped;
  for (int32_t d = 0; d < tensor.ndim; ++d) last += (tensor.size[d] - 1) * tensor.stride[d];
  return std::vector<uint8_t>((last + 1) * neq::element_bytes(tensor.dtype), 0xff);
}

inline int64_t offset(const neq_tensor& tensor, int64_t ordinal, int32_t dim, int64_t* channel) {
  int64_t at = 0;
  for (int32_t d = tensor.ndim - 1; d >= 0; --d) {
    const int64_t here = ordinal % tensor.size[d];
    ordinal /= tensor.size[d];
    if (d == dim) *channel = here;
    at += d == dim ? 0 : here * tensor.stride[d];
  }
  return at;
}

template <class Element>
void store_element(uint8_t* to, double value) {
  const auto stored = Element::store(value);
  std::memcpy(to, &stored, sizeof stored);
}

template <class Element>
double load_element(const uint8_t* from) {
  typename Element::Storage stored;
  std::memcpy(&stored, from, sizeof stored);
  return Element::load(stored);
}

inline void store_value(int32_t dtype, uint8_t* to, double value) {
  const auto store = dtype == NEQ_F64   ? store_element<neq::Double>
                     : dtype == NEQ_F32 ? store_element<neq::Float>
                     : dtype == NEQ_F16 ? store_element<neq::Half>
                                        : store_element<neq::BFloat16>;
  store(to, value);
}

inline double value_at(int32_t dtype, const uint8_t* from) {
  const auto load = dtype == NEQ_F64   ? load_element<neq::Double>
                    : dtype == NEQ_F32 ? load_element<neq::Float>
                    : dtype == NEQ_F16 ? load_element<neq::Half>
                                       : load_element<neq::BFloat16>;
  return load(from);
}

inline double epsilon(int32_t dtype) {
  return std::ldexp(1.0, dtype == NEQ_F64   ? -52
                         : dtype == NEQ_F32 ? -23
                         : dtype == NEQ_F16 ? -10
                                            : -7);
}

inline void fill(int32_t dtype, std::vector<uint8_t>* data, std::mt19937& random) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  const size_t element = neq::element_bytes(dtype);
  for (size_t at = 0; at < data->size(); at += element) {
    store_value(dtype, data->data() + at, uniform(random));
  }
}

// `count` of the channels, then `padding`.
inline std::vector<int32_t> random_index(int64_t channels, int64_t count, int64_t padding,
                                         std::mt19937& random) {
  std::vector<int32_t> index(channels);
  for (int32_t c = 0; c < channels; ++c) index[c] = c;
  std::shuffle(index.begin(), index.end(), random);
  index.resize(count);
  std::sort(index.begin(), index.end());
  index.insert(index.end(), padding, -1);
  return index;
}

struct Result {
  std::vector<uint8_t> packed;
  std::vector<uint8_t> bias;
};

// Bytes for what is packed; sums within four roundings' worth of a random walk.
inline void check_packed(const neq_tensor& dy, int32_t dim, const std::vector<int32_t>& index,
                         const neq_tensor& packed, const Result& result) {
  const int64_t element = neq::element_bytes(dy.dtype);
  const auto* source = static_cast<const uint8_t*>(dy.data);
  std::vector<long double> sums(index.size(), 0);
  const std::vector<uint8_t> zero(element, 0);
  neq_tensor widened = dy;
  widened.size[dim] = packed.size[dim];
  for (int64_t k = 0; k < numel(packed); ++k) {
    int64_t i = 0;
    int64_t ignored = 0;
    const int64_t to = offset(packed, k, dim, &i) + i * packed.stride[dim];
    const int64_t from = offset(widened, k, dim, &ignored) + index[i] * dy.stride[dim];
    const uint8_t* expected = index[i] < 0 ? zero.data() : source + from * element;
    CHECK(std::memcmp(result.packed.data() + to * element, expected, element) == 0);
    sums[i] += value_at(dy.dtype, expected);
  }
  const double length = static_cast<double>(numel(packed)) / std::max<size_t>(index.size(), 1);
  const double allowed = 4 * epsilon(dy.dtype) * std::sqrt(std::max(length, 1.0));
  for (size_t i = 0; i < index.size(); ++i) {
    const double bias = value_at(dy.dtype, result.bias.data() + i * element);
    CHECK(index[i] < 0 ? bias == 0 : std::fabs(static_cast<double>(bias - sums[i])) <= allowed);
  }
}
