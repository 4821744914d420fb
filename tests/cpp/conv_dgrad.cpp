// neq_conv_dgrad_cpu against a loop nest.
#include "convolution.h"

namespace {

using namespace convolution;

// dy is the problem's; dx has the shape and strides of its x.
struct Inputs {
  Problem problem;
  Tensor weight;

  static std::vector<int64_t> sizes(const Shape& shape) {
    std::vector<int64_t> sizes = {shape.outputs, shape.inputs};
    sizes.insert(sizes.end(), shape.kernel.begin(), shape.kernel.end());
    return sizes;
  }

  Inputs(const Shape& shape, neq_dtype dtype, std::mt19937& random)
      : problem(shape, dtype, random), weight(sizes(shape), dtype, shape.order == kLast) {
    weight.fill(random);
  }

  // One spatial dimension of dx at `at`: the output that weight `tap` meets there, or -1.
  int64_t output(int d, int64_t at, int64_t tap) const {
    const Shape& shape = problem.shape;
    const int64_t stride = problem.get(shape.stride, d, 1);
    const int64_t from =
        at + problem.get(shape.padding, d, 0) - tap * problem.get(shape.dilation, d, 1);
    if (from < 0 || from % stride != 0) return -1;
    const int64_t size =
        problem.flat() ? (d == 0 ? 1 : problem.dy.view.size[2]) : problem.dy.view.size[2 + d];
    return from / stride < size ? from / stride : -1;
  }

  double expected(const std::vector<int32_t>& index, int64_t n, int64_t c, int64_t u,
                  int64_t v) const {
    const std::vector<int64_t>& kernel = problem.shape.kernel;
    double sum = 0;
    for (int64_t r = 0; r < problem.get(kernel, 0, 1); ++r) {
      const int64_t p = output(0, u, r);
      for (int64_t s = 0; p >= 0 && s < problem.get(kernel, 1, 1); ++s) {
        const int64_t q = output(1, v, s);
        if (q < 0) continue;
        for (const int32_t o : index) {
          if (o >= 0) sum += weight.at(o, c, r, s) * problem.dy.at(n, o, p, q);
        }
      }
    }
    return sum;
  }
};

Tensor compute(const Inputs& inputs, const std::vector<int32_t>& index,
               const neq_parallel* parallel, int64_t off = 0) {
  const Problem& problem = inputs.problem;
  Tensor dx(Problem::sizes(problem.shape, false), problem.dtype, problem.shape.order == kLast);
  const auto width = static_cast<int64_t>(index.size());
  const int64_t bytes = neq_conv_dgrad_cpu_scratch(&problem.dy.view, &inputs.weight.view, width,
                                                   &problem.window, &dx.view);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes + off, 0xff);
  CHECK(neq_conv_dgrad_cpu(&problem.dy.view, &inputs.weight.view, index.data(), width,
                           &problem.window, &dx.view, {scratch.data() + off, bytes},
                           parallel) == NEQ_OK);
  return dx;
}

void check_result(const Inputs& inputs, const std::vector<int32_t>& index, const Tensor& dx) {
  const Problem& problem = inputs.problem;
  for (int64_t n = 0; n < problem.shape.batch; ++n) {
    for (int64_t c = 0; c < problem.shape.inputs; ++c) {
      for (int64_t u = 0; u < problem.get(problem.shape.in, 0, 1); ++u) {
        for (int64_t v = 0; v < problem.get(problem.shape.in, 1, 1); ++v) {
          check_close(problem.dtype, dx.at(n, c, u, v), inputs.expected(index, n, c, u, v));
        }
      }
    }
  }
}

void check_shape(const Shape& shape, neq_dtype dtype, std::mt19937& random) {
  const Inputs inputs(shape, dtype, random);
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const int64_t count : {int64_t{0}, int64_t{1}, shape.outputs / 3, shape.outputs}) {
    if (count > shape.outputs) continue;
    std::vector<int32_t> index = some_channels(shape.outputs, count, random);
    if (count == shape.outputs / 3) index.resize(std::min(count + 3, shape.outputs), -1);
    const Tensor alone = compute(inputs, index, nullptr);
    check_result(inputs, index, alone);
    for (const neq_parallel* parallel : {&backward, &threads}) {
      CHECK(compute(inputs, index, parallel, 8).memory == alone.memory);
    }
  }
}

std::vector<Shape> shapes() {
  std::vector<Shape> shapes;
  for (const Order order : {kPlanes, kLast, kMixed}) {
    const std::vector<Shape> all = {
        {5, 7, 9, {8, 9}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {3, 10, 7, {7, 7}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},  // rows that lie together
        {2, 17, 4, {6, 5}, {1, 1}, {1, 1}, {1, 2}, {1, 1}, order},  // and rows that do not
        {40, 9, 3, {3, 3}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // many samples at once
        {2, 2, 3, {40, 31}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {2, 150, 3, {4, 4}, {3, 2}, {1, 1}, {1, 1}, {1, 1}, order},  // more channels than positions
        {3, 9, 5, {14, 13}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, order},  // phases
        {2, 9, 5, {13, 20}, {3, 2}, {5, 7}, {2, 0}, {2, 1}, order},  // a stride beyond the kernel
        {2, 9, 5, {15, 15}, {3, 3}, {2, 2}, {2, 2}, {2, 2}, order},  // a phase that is skipped
        {1, 2, 3, {30, 30}, {3, 3}, {7, 8}, {1, 1}, {9, 11}, order},
        {1, 9, 12, {12, 12}, {7, 5}, {1, 2}, {3, 2}, {1, 1}, order},  // many weights
        {2, 9, 4, {4, 4}, {3, 3}, {1, 1}, {5, 4}, {1, 1}, order},     // more padding than input
        {2, 9, 4, {2, 1}, {2, 1}, {3, 3}, {4, 1}, {1, 1}, order},     // outputs of padding alone
        {1, 1, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {3, 9, 6, {33}, {4}, {1}, {3}, {1}, order},  // sequences
        {1, 8, 4, {2500}, {3}, {2}, {1}, {4}, order},
        {1, 3, 4, {1100}, {2}, {1}, {1}, {1}, order},                 // rows in parts
        {1, 256, 96, {8, 8}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},  // several tasks
        {3, 96, 9, {12, 12}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {0, 4, 3, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {2, 0, 3, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {2, 3, 0, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
    };
    shapes.insert(shapes.end(), all.begin(), all.end());
  }
  return shapes;
}

struct Arguments {
  neq_tensor dy, weight, dx;
  neq_window window;
  std::vector<int32_t> index;
  int64_t width;
  neq_scratch scratch;

  neq_status call() const {
    return neq_conv_dgrad_cpu(&dy, &weight, index.data(), width, &window, &dx, scratch, nullptr);
  }
};

// A right call, in memory of its own, and wrong ones that differ from it.
class Refusals {
 public:
  Refusals() : data_(4 * 4 * 9 + 200, 1.0f), out_(2 * 4 * 5 * 5, 5.0f), room_(1 << 16) {
    right.dy = {data_.data(), NEQ_F32, 4, {2, 4, 5, 5}, {100, 25, 5, 1}};
    right.dx = {out_.data(), NEQ_F32, 4, {2, 4, 5, 5}, {100, 25, 5, 1}};
    right.weight = {data_.data(), NEQ_F32, 4, {4, 4, 3, 3}, {36, 9, 3, 1}};
    right.window = {{1, 1}, {1, 1}, {1, 1}};
    right.index = {1, 3};
    right.width = 2;
    right.scratch = {room_.data(), static_cast<int64_t>(room_.size() * sizeof(double))};
  }

  template <class Change>
  void refused(const char* text, Change change) const {
    Arguments wrong = right;
    change(wrong);
    CHECK_REFUSED(wrong.call(), text);
    CHECK(std::count(out_.begin(), out_.end(), 5.0f) == static_cast<int64_t>(out_.size()));
  }

  Arguments right;

 private:
  std::vector<float> data_;
  std::vector<float> out_;
  std::vector<double> room_;
};

void check_pointers(const Refusals& refusals) {
  const Arguments& a = refusals.right;
  const auto call = [&](const neq_tensor* dy, const neq_tensor* weight, const int32_t* index,
                        const neq_window* window, const neq_tensor* dx) {
    return neq_conv_dgrad_cpu(dy, weight, index, 2, window, dx, a.scratch, nullptr);
  };
  const int32_t* const index = a.index.data();
  CHECK_REFUSED(call(nullptr, &a.weight, index, &a.window, &a.dx), "dy: expected a tensor");
  CHECK_REFUSED(call(&a.dy, nullptr, index, &a.window, &a.dx), "weight: expected a tensor");
  CHECK_REFUSED(call(&a.dy, &a.weight, index, &a.window, nullptr), "dx: expected a tensor");
  CHECK_REFUSED(call(&a.dy, &a.weight, index, nullptr, &a.dx), "window: expected strides");
  CHECK_REFUSED(call(&a.dy, &a.weight, nullptr, &a.window, &a.dx), "index: expected 2 channels");
  refusals.refused("scratch: expected", [](Arguments& wrong) { wrong.scratch = {nullptr, 0}; });
  refusals.refused("scratch: expected", [](Arguments& wrong) {
    wrong.scratch.bytes =
        neq_conv_dgrad_cpu_scratch(&wrong.dy, &wrong.weight, 2, &wrong.window, &wrong.dx) - 1;
  });
  refusals.refused("aligned to 8", [](Arguments& wrong) {
    wrong.scratch.data = static_cast<char*>(wrong.scratch.data) + 4;
  });
}

void check_refusals() {
  const Refusals f;
  check_pointers(f);
  f.refused("width: expected 0 to 4", [](Arguments& wrong) { wrong.width = 5; });
  f.refused("index: expected rising", [](Arguments& wrong) { wrong.index = {3, 1}; });
  f.refused("index: expected rising", [](Arguments& wrong) { wrong.index = {1, 4}; });
  f.refused("dx: expected data", [](Arguments& wrong) { wrong.dx.data = nullptr; });
  f.refused("weight: expected data", [](Arguments& wrong) { wrong.weight.data = nullptr; });
  f.refused("dx: expected dy's dtype", [](Arguments& wrong) { wrong.dx.dtype = NEQ_BF16; });
  f.refused("weight: expected dy's dtype", [](Arguments& wrong) { wrong.weight.ndim = 3; });
  f.refused("dx: expected dy's batch", [](Arguments& wrong) { wrong.dx.size[0] = 1; });
  f.refused("weight: expected shape [4, 4", [](Arguments& wrong) { wrong.weight.size[0] = 3; });
  f.refused("weight: expected shape [4, 3", [](Arguments& wrong) { wrong.dx.size[1] = 3; });
  f.refused("weight: expected a kernel", [](Arguments& wrong) { wrong.weight.size[2] = 0; });
  f.refused("dx: expected memory of its own", [](Arguments& wrong) { wrong.dx.stride[1] = 0; });
  f.refused("which dx's 6", [](Arguments& wrong) { wrong.dx.size[2] = 6; });
  f.refused("window: expected stride and", [](Arguments& wrong) { wrong.window.stride[0] = 0; });
  f.refused("all below 2^31", [](Arguments& wrong) { wrong.window.padding[1] = INT64_MAX; });
  f.refused("steps through dx", [](Arguments& wrong) {
    wrong.window = {{INT32_MAX, 1}, {1, 1}, {1, 1}};
    wrong.dy.size[2] = wrong.dx.size[2] = 1;
    wrong.dx.stride[2] = int64_t{1} << 50;
  });
  f.refused("dx into at most 64 phases", [](Arguments& wrong) {
    wrong.window = {{9, 8}, {0, 0}, {1, 1}};
    wrong.weight = {wrong.weight.data, NEQ_F32, 4, {4, 4, 9, 8}, {0, 0, 0, 1}};
    wrong.dy.size[2] = wrong.dy.size[3] = 1;
    wrong.dx = {wrong.dx.data, NEQ_F32, 4, {2, 4, 9, 8}, {288, 72, 8, 1}};
  });
  f.refused("tiles of less than 2^30", [](Arguments& wrong) {  // a panel of weights
    wrong.weight = {wrong.weight.data, NEQ_F32, 4, {4, 4, 1 << 12, 1 << 12}, {0, 0, 0, 1}};
    wrong.window = {{1, 1}, {1 << 12, 1 << 12}, {1, 1}};
    wrong.dx = {wrong.dx.data,
                NEQ_F32,
                4,
                {2, 4, 1 << 12, 1 << 12},
                {int64_t{1} << 26, 1 << 24, 1 << 12, 1}};
    wrong.dy = {wrong.dy.data, NEQ_F32, 4, {2, 4, 8193, 8193}, {0, 0, 0, 0}};
    wrong.width = 4;
    wrong.index = {0, 1, 2, 3};
  });
  CHECK(f.right.call() == NEQ_OK);
}

}  // namespace

int main() {
  std::mt19937 random(7);
  with_each_isa([&] {
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      for (const Shape& shape : shapes()) check_shape(shape, dtype, random);
    }
  });
  check_refusals();
  std::puts("conv_dgrad: ok");
}
