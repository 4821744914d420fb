// neq_depthwise_wgrad_cpu against a loop nest, in buffers of exactly the right size so that the
// address sanitizer sees every step beside them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace {

enum Order { kPlanes, kLast, kMixed };

struct Shape {
  int64_t batch, inputs, multiplier;
  std::vector<int64_t> in, kernel, stride, padding, dilation;
  Order order;
};

int64_t bytes_of(int32_t dtype) { return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2; }

// Sixteen-bit types hold small whole numbers and halves only: exact, and easy to make.
double read(const void* data, int32_t dtype, int64_t at) {
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

void write(void* data, int32_t dtype, int64_t at, float value) {
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

int64_t out_size(const Shape& shape, size_t d) {
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
    std::vector<int64_t> sizes = {shape.batch, shape.inputs * (out ? shape.multiplier : 1)};
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

  int64_t outputs() const { return shape.inputs * shape.multiplier; }
  bool flat() const { return shape.in.size() == 1; }
  int64_t get(const std::vector<int64_t>& values, int d, int64_t otherwise) const {
    if (flat()) return d == 0 ? otherwise : values[0];
    return values[d];
  }

  double expected(int64_t o, int64_t r, int64_t s) const {
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
          sum += dy.at(n, o, p, q) * x.at(n, o / shape.multiplier, i, j);
        }
      }
    }
    return sum;
  }
};

struct Result {
  Tensor dw;
  std::vector<uint8_t> db;
};

Result compute(const Problem& problem, const std::vector<int32_t>& index,
               const neq_parallel* parallel) {
  std::vector<int64_t> sizes = {problem.outputs(), 1};
  sizes.insert(sizes.end(), problem.shape.kernel.begin(), problem.shape.kernel.end());
  Result result{Tensor(sizes, problem.dtype, problem.shape.order == kLast),
                std::vector<uint8_t>(problem.outputs() * bytes_of(problem.dtype), 0xff)};
  const auto width = static_cast<int64_t>(index.size());
  const int64_t bytes = neq_depthwise_wgrad_cpu_scratch(&problem.dy.view, &problem.x.view, width,
                                                        &problem.window, &result.dw.view);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes, 0xff);
  CHECK(neq_depthwise_wgrad_cpu(&problem.dy.view, &problem.x.view, index.data(), width,
                                &problem.window, &result.dw.view, result.db.data(),
                                {scratch.data(), bytes}, parallel) == NEQ_OK);
  return result;
}

void check_result(const Problem& problem, const std::vector<int32_t>& index, const Result& result) {
  const double eps = problem.dtype == NEQ_BF16  ? 0x1p-8
                     : problem.dtype == NEQ_F16 ? 0x1p-11
                     : problem.dtype == NEQ_F32 ? 0x1p-22
                                                : 0x1p-50;
  for (int64_t o = 0; o < problem.outputs(); ++o) {
    const bool active = std::find(index.begin(), index.end(), o) != index.end();
    for (int64_t r = 0; r < problem.get(problem.shape.kernel, 0, 1); ++r) {
      for (int64_t s = 0; s < problem.get(problem.shape.kernel, 1, 1); ++s) {
        const double expected = active ? problem.expected(o, r, s) : 0;
        const double error = std::fabs(result.dw.at(o, 0, r, s) - expected);
        CHECK(active ? error <= eps * (std::fabs(expected) + 1) : error == 0);
      }
    }
    double sum = 0;
    for (int64_t n = 0; active && n < problem.shape.batch; ++n) {
      const int64_t rows = problem.flat() ? 1 : problem.dy.view.size[2];
      for (int64_t p = 0; p < rows; ++p) {
        for (int64_t q = 0; q < problem.dy.view.size[problem.dy.view.ndim - 1]; ++q) {
          sum += problem.dy.at(n, o, p, q);
        }
      }
    }
    const double error = std::fabs(read(result.db.data(), problem.dtype, o) - sum);
    CHECK(active ? error <= eps * (std::fabs(sum) + 1) : error == 0);
  }
}

void check_shape(const Shape& shape, neq_dtype dtype, std::mt19937& random) {
  const Problem problem(shape, dtype, random);
  const int64_t outputs = problem.outputs();
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const int64_t count : {int64_t{0}, int64_t{1}, outputs / 3, outputs}) {
    if (count > outputs) continue;
    std::vector<int32_t> index(outputs);
    for (int32_t c = 0; c < outputs; ++c) index[c] = c;
    std::shuffle(index.begin(), index.end(), random);
    index.resize(count);
    std::sort(index.begin(), index.end());
    if (count == outputs / 3) index.resize(std::min(count + 3, outputs), -1);
    const Result alone = compute(problem, index, nullptr);
    check_result(problem, index, alone);
    for (const neq_parallel* parallel : {&backward, &threads}) {
      const Result shared = compute(problem, index, parallel);
      CHECK(shared.dw.memory == alone.dw.memory);
      CHECK(shared.db == alone.db);
    }
  }
}

void check_shapes() {
  std::mt19937 random(7);
  std::vector<Shape> shapes;
  for (const Order order : {kPlanes, kLast, kMixed}) {
    const std::vector<Shape> all = {
        {3, 19, 1, {7, 7}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // planes below a vector
        {5, 9, 1, {3, 3}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {2, 17, 1, {14, 13}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, order},  // phases
        {2, 3, 1, {21, 37}, {5, 5}, {1, 1}, {2, 2}, {1, 1}, order},   // three chunks of taps
        {1, 2, 1, {70, 66}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},   // several bands
        {1, 3, 2, {90, 40}, {3, 3}, {2, 1}, {1, 0}, {1, 2}, order},
        {2, 8, 3, {6, 9}, {2, 4}, {3, 2}, {0, 3}, {2, 1}, order},   // a multiplier
        {2, 12, 1, {5, 4}, {3, 3}, {1, 1}, {0, 0}, {1, 1}, order},  // no padding
        {2, 11, 1, {6, 5}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {2, 5, 1, {4, 4}, {3, 3}, {1, 1}, {5, 4}, {1, 1}, order},  // more padding than input
        {1, 4, 1, {9, 9}, {3, 2}, {5, 7}, {1, 1}, {3, 2}, order},  // a stride beyond the kernel
        {1, 1, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {2, 300, 1, {3, 2}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // several chunks of channels
        {3, 20, 1, {33}, {4}, {1}, {3}, {1}, order},                 // sequences
        {1, 2, 2, {2500}, {3}, {2}, {1}, {4}, order},
        {0, 4, 1, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // an empty batch
    };
    shapes.insert(shapes.end(), all.begin(), all.end());
  }
  with_each_isa([&] {
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      for (const Shape& shape : shapes) check_shape(shape, dtype, random);
    }
  });
}

void check_refusals() {
  std::vector<float> data(2 * 4 * 5 * 5, 1.0f);
  std::vector<float> out(4 * 9, 5.0f);
  std::vector<double> room(1 << 20);
  const neq_scratch scratch = {room.data(), static_cast<int64_t>(room.size() * sizeof(double))};
  const neq_tensor dy = {data.data(), NEQ_F32, 4, {2, 4, 5, 5}, {100, 25, 5, 1}};
  const neq_tensor x = dy;
  const neq_tensor dw = {out.data(), NEQ_F32, 4, {4, 1, 3, 3}, {9, 9, 3, 1}};
  const neq_window window = {{1, 1}, {1, 1}, {1, 1}};
  const int32_t index[] = {1, 3};
  const auto call = [&](const neq_tensor* gradient, const neq_tensor* input, const int32_t* list,
                        int64_t width, const neq_window* slides, const neq_tensor* rows,
                        neq_scratch memory) {
    return neq_depthwise_wgrad_cpu(gradient, input, list, width, slides, rows, nullptr, memory,
                                   nullptr);
  };
  const auto changed = [](auto value, auto change) {
    change(value);
    return value;
  };
  CHECK_REFUSED(call(nullptr, &x, index, 2, &window, &dw, scratch), "dy: expected a tensor");
  CHECK_REFUSED(call(&dy, nullptr, index, 2, &window, &dw, scratch), "x: expected a tensor");
  CHECK_REFUSED(call(&dy, &x, index, 2, &window, nullptr, scratch), "dw: expected a tensor");
  CHECK_REFUSED(call(&dy, &x, index, 2, nullptr, &dw, scratch), "window: expected strides");
  CHECK_REFUSED(call(&dy, &x, nullptr, 2, &window, &dw, scratch), "index: expected 2 channels");
  CHECK_REFUSED(call(&dy, &x, index, -1, &window, &dw, scratch), "width: expected 0 to 4");
  CHECK_REFUSED(call(&dy, &x, index, 5, &window, &dw, scratch), "width: expected 0 to 4");
  CHECK_REFUSED(call(&dy, &x, index, 2, &window, &dw, {nullptr, 0}), "scratch: expected");
  for (const auto& wrong :
       std::vector<std::vector<int32_t>>{{1, 1}, {3, 1}, {1, 4}, {-1, 1}, {1, -2}}) {
    CHECK_REFUSED(call(&dy, &x, wrong.data(), 2, &window, &dw, scratch),
                  "index: expected rising channels");
  }
  const neq_tensor three = changed(dy, [](neq_tensor& t) { t.ndim = 2; });
  CHECK_REFUSED(call(&three, &x, index, 2, &window, &dw, scratch), "dy: expected [N, O, length]");
  const neq_tensor narrow = changed(x, [](neq_tensor& t) { t.dtype = NEQ_BF16; });
  CHECK_REFUSED(call(&dy, &narrow, index, 2, &window, &dw, scratch), "x: expected dy's dtype");
  const neq_tensor batch = changed(x, [](neq_tensor& t) { t.size[0] = 1; });
  CHECK_REFUSED(call(&dy, &batch, index, 2, &window, &dw, scratch), "x: expected dy's batch");
  for (const int64_t inputs : {0, 3, 8}) {
    const neq_tensor wrong =
        changed(x, [&](neq_tensor& t) { t.size[1] = inputs, t.stride[0] = 0; });
    CHECK_REFUSED(call(&dy, &wrong, index, 2, &window, &dw, scratch), "x: expected channels that");
  }
  const neq_tensor taller = changed(x, [](neq_tensor& t) { t.size[2] = 4; });
  CHECK_REFUSED(call(&dy, &taller, index, 2, &window, &dw, scratch), "dy: expected size 4");
  const neq_tensor grouped = changed(dw, [](neq_tensor& t) { t.size[1] = 2, t.size[0] = 2; });
  CHECK_REFUSED(call(&dy, &x, index, 2, &window, &grouped, scratch), "dw: expected shape [4, 1");
  const neq_tensor expanded = changed(dw, [](neq_tensor& t) { t.stride[0] = 0; });
  CHECK_REFUSED(call(&dy, &x, index, 2, &window, &expanded, scratch), "memory of its own");
  for (const neq_window& wrong :
       {neq_window{{0, 1}, {1, 1}, {1, 1}}, neq_window{{1, 1}, {1, -1}, {1, 1}},
        neq_window{{1, 1}, {1, 1}, {0, 1}}}) {
    CHECK_REFUSED(call(&dy, &x, index, 2, &wrong, &dw, scratch), "window: expected stride and");
  }
  const neq_window vast = {{1, 1}, {1, 1}, {INT64_MAX, 1}};
  CHECK_REFUSED(call(&dy, &x, index, 2, &vast, &dw, scratch), "all below 2^31");
  // One output that meets the input with its middle weights alone, 2^30 to either side.
  const int64_t far = int64_t{1} << 30;
  const neq_window apart = {{1, 1}, {far, 1}, {far, 1}};
  CHECK_REFUSED(call(&dy, &x, index, 2, &apart, &dw, scratch), "window: expected a dilation whose");
  // Kernels whose product overflows, of no channels.
  const int64_t most = int64_t{1} << 40;
  const neq_tensor none = {nullptr, NEQ_F32, 4, {2, 0, 0, 0}, {0, 0, 0, 0}};
  const neq_tensor huge = {nullptr, NEQ_F32, 4, {0, 1, most, most}, {0, 0, 0, 0}};
  CHECK_REFUSED(call(&none, &none, index, 0, &window, &huge, scratch), "dw: expected kernels of");
  // Steps through x beyond 64 bits, of which none is taken.
  const neq_window leap = {{INT32_MAX, 1}, {1, 1}, {1, 1}};
  const neq_tensor row = changed(dy, [](neq_tensor& t) { t.size[2] = 1; });
  const neq_tensor apart_rows =
      changed(x, [](neq_tensor& t) { t.size[2] = 1, t.stride[2] = int64_t{1} << 50; });
  CHECK_REFUSED(call(&row, &apart_rows, index, 2, &leap, &dw, scratch), "window: expected strides");
  // An input of padding alone.
  const neq_tensor padding = {nullptr, NEQ_F32, 4, {2, 4, 3, 5}, {0, 0, 0, 1}};
  const neq_tensor empty = changed(padding, [](neq_tensor& t) { t.size[2] = 0; });
  neq_tensor there = changed(padding, [&](neq_tensor& t) { t.data = data.data(); });
  const neq_window around = {{1, 1}, {3, 1}, {2, 1}};
  there.size[2] = 2;
  std::vector<float> zeros(36, 1.0f);
  const neq_tensor rows = changed(dw, [&](neq_tensor& t) { t.data = zeros.data(); });
  CHECK(call(&there, &empty, index, 2, &around, &rows, scratch) == NEQ_OK);
  CHECK(std::count(zeros.begin(), zeros.end(), 0.0f) == 36);
  CHECK(neq_depthwise_wgrad_cpu_scratch(&dy, &x, 5, &window, &dw) == -1);
  CHECK(std::count(out.begin(), out.end(), 5.0f) == 36);
}

}  // namespace

int main() {
  check_shapes();
  check_refusals();
  std::puts("depthwise_wgrad: ok");
}
