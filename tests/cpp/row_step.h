// Parameters to step, and what a loop in double makes of them: shared by the tests of row_sgd and
// row_adamw on the CPU and on the emulated GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/element.h"

namespace row_step {

struct Layout {
  std::vector<int64_t> sizes;
  int32_t dim;
  std::vector<int64_t> order;     // dimensions from the outermost in memory to the innermost
  std::vector<int64_t> gradient;  // the gradient's
  int64_t step = 1;               // elements between neighbours of the innermost
  int64_t shift = 0;              // elements that the memory starts later than it is aligned
};

inline const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {{64, 48}, 0, {0, 1}, {0, 1}},
      {{37, 19}, 0, {0, 1}, {0, 1}, 1, 1},   // rows that no vector divides, misaligned
      {{5, 3000}, 0, {0, 1}, {0, 1}},        // a row is more than a piece
      {{70, 9}, 1, {0, 1}, {0, 1}},          // columns, fewer than a vector
      {{70, 133}, 1, {0, 1}, {0, 1}, 1, 3},  // columns
      {{1, 200}, 1, {0, 1}, {0, 1}},         // one line of columns
      {{300}, 0, {0}, {0}},                  // a bias
      {{1}, 0, {0}, {0}},                    // one element
      {{12, 5, 3, 3}, 0, {0, 1, 2, 3}, {0, 1, 2, 3}},
      {{12, 5, 3, 3}, 0, {0, 2, 3, 1}, {0, 2, 3, 1}},  // channels_last
      {{12, 5, 3, 3}, 0, {0, 2, 3, 1}, {0, 1, 2, 3}},  // with a contiguous gradient
      {{33, 8}, 0, {1, 0}, {1, 0}},                    // transposed: columns
      {{33, 8}, 0, {0, 1}, {1, 0}},                    // transposed gradient
      {{33, 8}, 0, {0, 1}, {0, 1}, 2},                 // every other element
      {{4, 3, 6}, 1, {0, 1, 2}, {0, 1, 2}},            // neurons in the middle
      {{0, 4}, 0, {0, 1}, {0, 1}},                     // nothing
      {{4, 0}, 0, {0, 1}, {0, 1}},
  };
  return all;
}

inline int64_t bytes_of(int32_t dtype) { return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2; }

inline double load(const uint8_t* at, int32_t dtype) {
  if (dtype == NEQ_F64) return neq::Double::load(*reinterpret_cast<const double*>(at));
  if (dtype == NEQ_F32) return *reinterpret_cast<const float*>(at);
  const uint16_t bits = *reinterpret_cast<const uint16_t*>(at);
  return dtype == NEQ_F16 ? neq::Half::load(bits) : neq::BFloat16::load(bits);
}

inline void store(uint8_t* at, int32_t dtype, double value) {
  if (dtype == NEQ_F64) {
    *reinterpret_cast<double*>(at) = value;
  } else if (dtype == NEQ_F32) {
    *reinterpret_cast<float*>(at) = static_cast<float>(value);
  } else {
    *reinterpret_cast<uint16_t*>(at) =
        dtype == NEQ_F16 ? neq::Half::store(value) : neq::BFloat16::store(value);
  }
}

// A parameter with memory of exactly its size, first byte to last element.
struct Parameter {
  neq_row_parameter view{};
  std::vector<uint8_t> memory[NEQ_ROW_TENSORS];
  std::vector<int32_t> index;
  int tensors = 0;
  int64_t shift = 0;

  uint8_t* element(int tensor, int64_t ordinal) {
    const neq_tensor& t = view.tensor[tensor];
    int64_t at = shift;
    for (int32_t d = t.ndim - 1; d >= 0; --d) {
      at += ordinal % t.size[d] * t.stride[d];
      ordinal /= t.size[d];
    }
    return memory[tensor].data() + at * bytes_of(t.dtype);
  }

  int64_t numel() const {
    const neq_tensor& t = view.tensor[0];
    return std::accumulate(t.size, t.size + t.ndim, int64_t{1}, std::multiplies<>());
  }

  bool active(int64_t ordinal) const {
    if (view.count < 0) return true;
    const neq_tensor& t = view.tensor[0];
    for (int32_t d = t.ndim - 1; d > view.dim; --d) ordinal /= t.size[d];
    const auto neuron = static_cast<int32_t>(ordinal % t.size[view.dim]);
    return std::binary_search(index.begin(), index.begin() + view.count, neuron);
  }

  // After a copy: the views follow the memory they stand for.
  void connect() {
    for (int t = 0; t < tensors; ++t) {
      view.tensor[t].data = memory[t].data() + shift * bytes_of(view.tensor[t].dtype);
    }
    view.index = index.data();
  }
};

// Every `keep`-th neuron on average is active; -1 for all without an index. State is positive.
inline Parameter make(const Layout& layout, neq_dtype dtype, int tensors, int keep,
                      std::mt19937& random) {
  Parameter made;
  made.tensors = tensors;
  made.shift = layout.shift;
  made.view.dim = layout.dim;
  made.view.step = 3;
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (int t = 0; t < tensors; ++t) {
    neq_tensor& tensor = made.view.tensor[t];
    tensor.dtype = dtype;
    tensor.ndim = static_cast<int32_t>(layout.sizes.size());
    std::copy(layout.sizes.begin(), layout.sizes.end(), tensor.size);
    const auto& order = t == 1 ? layout.gradient : layout.order;
    int64_t stride = layout.step;
    int64_t last = 0;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      tensor.stride[*d] = stride;
      last += stride * std::max<int64_t>(tensor.size[*d] - 1, 0);
      stride *= std::max<int64_t>(tensor.size[*d], 1);
    }
    const int64_t elements = made.numel() ? last + 1 + layout.shift : layout.shift;
    made.memory[t].resize(elements * bytes_of(dtype));
    for (int64_t i = 0; i < elements; ++i) {
      const double value = uniform(random);
      store(made.memory[t].data() + i * bytes_of(dtype), dtype, t < 3 ? value : std::fabs(value));
    }
  }
  const auto neurons = static_cast<int32_t>(layout.sizes[layout.dim]);
  for (int32_t c = 0; c < neurons; ++c) {
    if (keep > 0 && random() % keep == 0) made.index.push_back(c);
  }
  made.view.count = keep < 0 ? -1 : static_cast<int64_t>(made.index.size());
  made.connect();
  return made;
}

// x[t] of one element, before and after.
inline void reference(const neq_sgd& o, double, double* x) {
  double g = (o.maximize ? -x[1] : x[1]) + o.weight_decay * x[0];
  if (o.momentum != 0) {
    x[2] = o.momentum * x[2] + (1 - o.dampening) * g;
    g = o.nesterov ? g + o.momentum * x[2] : x[2];
  }
  x[0] -= o.lr * g;
}

inline void reference(const neq_adamw& o, double step, double* x) {
  double g = o.maximize ? -x[1] : x[1];
  if (o.decoupled) {
    x[0] *= 1 - o.lr * o.weight_decay;
  } else {
    g += o.weight_decay * x[0];
  }
  x[2] += (1 - o.beta1) * (g - x[2]);
  x[3] = o.beta2 * x[3] + (1 - o.beta2) * g * g;
  double largest = x[3];
  if (o.amsgrad) largest = x[4] = std::max(x[4], x[3]);
  const double root = std::sqrt(1 - std::pow(o.beta2, step));
  x[0] -= o.lr / (1 - std::pow(o.beta1, step)) * x[2] / (std::sqrt(largest) / root + o.eps);
}

// Active elements stand where the reference puts them, every other byte is as it was.
template <class Options>
void check_stepped(const Options& options, Parameter before, Parameter after) {
  const int32_t dtype = before.view.tensor[0].dtype;
  const double tolerance = dtype == NEQ_F64   ? 1e-14
                           : dtype == NEQ_F32 ? 2e-6
                           : dtype == NEQ_F16 ? 1.1e-3
                                              : 8.8e-3;
  for (int64_t i = 0; i < before.numel(); ++i) {
    if (!before.active(i)) continue;
    double x[NEQ_ROW_TENSORS];
    for (int t = 0; t < before.tensors; ++t) x[t] = load(before.element(t, i), dtype);
    reference(options, before.view.step, x);
    for (int t = 0; t < before.tensors; ++t) {
      uint8_t* const at = after.element(t, i);
      CHECK(std::fabs(load(at, dtype) - x[t]) <= tolerance * std::max(1.0, std::fabs(x[t])));
      if (t != 1) std::memcpy(before.element(t, i), at, bytes_of(dtype));
    }
  }
  for (int t = 0; t < before.tensors; ++t) CHECK(before.memory[t] == after.memory[t]);
}

inline std::vector<neq_sgd> sgd_options() {
  return {{0.1, 0, 0, 0, 0, 0},
          {0.1, 0, 0, 0.3, 0, 1},
          {0.1, 0.9, 0, 0, 0, 0},
          {0.1, 0.9, 0.5, 0.3, 0, 1},
          {0.1, 0.9, 0, 0.3, 1, 0}};
}

inline std::vector<neq_adamw> adamw_options() {
  return {{0.1, 0.9, 0.99, 1e-8, 0.3, 1, 0, 0, 0},
          {0.1, 0.9, 0.99, 1e-8, 0.3, 0, 0, 1, 0},
          {0.1, 0.5, 0.9, 1e-3, 0, 1, 1, 0, 0},
          {0.1, 0.9, 0.99, 1e-8, 0.3, 1, 1, 1, 0}};
}

inline int tensors_of(const neq_sgd& options) { return options.momentum != 0 ? 3 : 2; }
inline int tensors_of(const neq_adamw& options) { return options.amsgrad ? 5 : 4; }

}  // namespace row_step
