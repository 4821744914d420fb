// What conv_wgrad and depthwise_wgrad are tested with on every device: a loop nest to compare with,
// and buffers of exactly the right size so that the address sanitizer sees every step beside them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace convolution {

enum Order { kPlanes, kLast, kMixed };

struct Shape {
  int64_t batch, inputs, outputs;
  std::vector<int64_t> in, kernel, stride, padding, dilation;
  Order order;
};

inline int64_t bytes_of(int32_t dtype) { return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2; }

// Sixteen-bit types hold small whole numbers and halves only: exact, and easy to make.
inline double read(const void* data, int32_t dtype, int64_t at) {
  if (dtype == NEQ_F64) return static_cast<const double*>(data)[at];
  if (dtype == NEQ_F32) return static_cast<const float*>(data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(data)[at];
  if (dtype == NEQ_BF16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double size = exponent == 31  ? std::numeric_limits<double>::quiet_NaN()
                      : exponent == 0 ? std::ldexp(fraction, -24)
                                      : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -size : size;
}

inline void write(void* data, int32_t dtype, int64_t at, float value) {
  if (dtype == NEQ_F64) {
    static_cast<double*>(data)[at] = value;
  } else if (dtype == NEQ_F32) {
    static_cast<float*>(data)[at] = value;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint16_t narrow = static_cast<uint16_t>(bits >> 16);
    if (dtype == NEQ_F16) {
      const uint32_t exponent = bits >> 23 & 255;
      narrow = static_cast<uint16_t>((bits >> 16 & 0x8000) |
                                     (exponent ? (exponent - 112) << 10 | (bits >> 13 & 1023) : 0));
    }
    static_cast<uint16_t*>(data)[at] = narrow;
  }
}

struct Tensor {
  neq_tensor view{};
  std::vector<uint8_t> memory;

  Tensor(const std::vector<int64_t>& sizes, neq_dtype dtype, bool last) {
    view.dtype = dtype;
    view.ndim = static_cast<int32_t>(sizes.size());
    std::vector<int32_t> order;
    order.push_back(0);
    if (!last) order.push_back(1);
    for (int32_t d = 2; d < view.ndim; ++d) order.push_back(d);
    if (last) order.push_back(1);
    int64_t stride = 1;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      view.size[*d] = sizes[*d];
      view.stride[*d] = stride;
      stride *= sizes[*d];
    }
    memory.assign(stride * bytes_of(dtype), 0xff);
    view.data = memory.data();
  }

  void fill(std::mt19937& random) {
    std::uniform_int_distribution<int> eighths(-16, 16);
    for (size_t at = 0; at < memory.size() / bytes_of(view.dtype); ++at) {
      write(view.data, view.dtype, static_cast<int64_t>(at), eighths(random) / 8.0f);
    }
  }

  // At [n, c, i, j], or [n, c, j].
  double at(int64_t n, int64_t c, int64_t i, int64_t j) const {
    int64_t offset = n * view.stride[0] + c * view.stride[1];
    offset += view.ndim == 4 ? i * view.stride[2] + j * view.stride[3] : j * view.stride[2];
    return read(view.data, view.dtype, offset);
  }
};

inline int64_t out_size(const Shape& shape, size_t d) {
  return (shape.in[d] + 2 * shape.padding[d] - shape.dilation[d] * (shape.kernel[d] - 1) - 1) /
             shape.stride[d] +
         1;
}

struct Problem {
  Shape shape;
  neq_dtype dtype;
  neq_window window{};
  Tensor dy, x;

  static std::vector<int64_t> sizes(const Shape& shape, bool out) {
    std::vector<int64_t> sizes = {shape.batch, out ? shape.outputs : shape.inputs};
    for (size_t d = 0; d < shape.in.size(); ++d) {
      sizes.push_back(out ? out_size(shape, d) : shape.in[d]);
    }
    return sizes;
  }

  Problem(const Shape& s, neq_dtype t, std::mt19937& random)
      : shape(s),
        dtype(t),
        dy(sizes(s, true), t, s.order != kPlanes),
        x(sizes(s, false), t, s.order == kLast) {
    dy.fill(random);
    x.fill(random);
    for (size_t d = 0; d < s.in.size(); ++d) {
      window.stride[d] = s.stride[d];
      window.padding[d] = s.padding[d];
      window.dilation[d] = s.dilation[d];
    }
  }

  int64_t outputs() const { return shape.outputs; }
  bool flat() const { return shape.in.size() == 1; }
  int64_t get(const std::vector<int64_t>& values, int d, int64_t otherwise) const {
    if (flat()) return d == 0 ? otherwise : values[0];
    return values[d];
  }

  // The sum for weight [r, s] between channel o of dy and channel c of x.
  double expected(int64_t o, int64_t c, int64_t r, int64_t s) const {
    const int64_t rows = flat() ? 1 : out_size(shape, 0);
    const int64_t columns = out_size(shape, flat() ? 0 : 1);
    double sum = 0;
    for (int64_t n = 0; n < shape.batch; ++n) {
      for (int64_t p = 0; p < rows; ++p) {
        const int64_t i =
            p * get(shape.stride, 0, 1) + r * get(shape.dilation, 0, 1) - get(shape.padding, 0, 0);
        if (i < 0 || i >= get(shape.in, 0, 1)) continue;
        for (int64_t q = 0; q < columns; ++q) {
          const int64_t j = q * get(shape.stride, 1, 1) + s * get(shape.dilation, 1, 1) -
                            get(shape.padding, 1, 0);
          if (j < 0 || j >= get(shape.in, 1, 1)) continue;
          sum += dy.at(n, o, p, q) * x.at(n, c, i, j);
        }
      }
    }
    return sum;
  }

  double expected_bias(int64_t o) const {
    double sum = 0;
    for (int64_t n = 0; n < shape.batch; ++n) {
      for (int64_t p = 0; p < (flat() ? 1 : dy.view.size[2]); ++p) {
        for (int64_t q = 0; q < dy.view.size[dy.view.ndim - 1]; ++q) sum += dy.at(n, o, p, q);
      }
    }
    return sum;
  }
};

struct Result {
  Tensor dw;
  std::vector<uint8_t> db;
};

// Memory for rows of `inputs` kernels, and for their bias, poisoned.
inline Result rows_for(const Problem& problem, int64_t rows, int64_t inputs) {
  std::vector<int64_t> sizes = {rows, inputs};
  sizes.insert(sizes.end(), problem.shape.kernel.begin(), problem.shape.kernel.end());
  return {Tensor(sizes, problem.dtype, problem.shape.order == kLast),
          std::vector<uint8_t>(rows * bytes_of(problem.dtype), 0xff)};
}

inline void check_close(neq_dtype dtype, double found, double expected) {
  const double eps = dtype == NEQ_BF16  ? 0x1p-8
                     : dtype == NEQ_F16 ? 0x1p-11
                     : dtype == NEQ_F32 ? 0x1p-22
                                        : 0x1p-50;
  CHECK(std::fabs(found - expected) <= eps * (std::fabs(expected) + 1));
}

// Row `row` of the result: of channel `o` of dy and those of x from `first` on, or, with o < 0, of
// zeros.
inline void check_row(const Problem& problem, const Result& result, int64_t row, int64_t o,
                      int64_t first) {
  const auto check = [&](double found, double expected) {
    if (o >= 0) return check_close(problem.dtype, found, expected);
    CHECK(found == 0);
  };
  for (int64_t c = 0; c < result.dw.view.size[1]; ++c) {
    for (int64_t r = 0; r < problem.get(problem.shape.kernel, 0, 1); ++r) {
      for (int64_t s = 0; s < problem.get(problem.shape.kernel, 1, 1); ++s) {
        check(result.dw.at(row, c, r, s), o >= 0 ? problem.expected(o, first + c, r, s) : 0);
      }
    }
  }
  check(read(result.db.data(), problem.dtype, row), o >= 0 ? problem.expected_bias(o) : 0);
}

// `count` of all channels, in rising order.
inline std::vector<int32_t> some_channels(int64_t outputs, int64_t count, std::mt19937& random) {
  std::vector<int32_t> index(outputs);
  for (int32_t c = 0; c < outputs; ++c) index[c] = c;
  std::shuffle(index.begin(), index.end(), random);
  index.resize(count);
  std::sort(index.begin(), index.end());
  return index;
}

}  // namespace convolution
