// How the CPU functions of conv_wgrad and depthwise_wgrad are tested, whose arguments are the same:
// with every instruction set and number of threads, and with what is wrong for both.
#pragma once

#include "convolution.h"

namespace convolution {

struct Function {
  decltype(&neq_conv_wgrad_cpu) run;
  decltype(&neq_conv_wgrad_cpu_scratch) scratch;
  Result (*outputs_for)(const Problem& problem, int64_t width);
  void (*check_result)(const Problem& problem, const std::vector<int32_t>& index,
                       const Result& result);
};

inline Result compute(const Function& function, const Problem& problem,
                      const std::vector<int32_t>& index, const neq_parallel* parallel) {
  const auto width = static_cast<int64_t>(index.size());
  Result result = function.outputs_for(problem, width);
  const int64_t bytes =
      function.scratch(&problem.dy.view, &problem.x.view, width, &problem.window, &result.dw.view);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes, 0xff);
  CHECK(function.run(&problem.dy.view, &problem.x.view, index.data(), width, &problem.window,
                     &result.dw.view, result.db.data(), {scratch.data(), bytes},
                     parallel) == NEQ_OK);
  return result;
}

inline void check_shape(const Function& function, const Shape& shape, neq_dtype dtype,
                        std::mt19937& random) {
  const Problem problem(shape, dtype, random);
  const int64_t outputs = problem.outputs();
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const int64_t count : {int64_t{0}, int64_t{1}, outputs / 3, outputs}) {
    if (count > outputs) continue;
    std::vector<int32_t> index = some_channels(outputs, count, random);
    if (count == outputs / 3) index.resize(std::min(count + 3, outputs), -1);
    const Result alone = compute(function, problem, index, nullptr);
    function.check_result(problem, index, alone);
    for (const neq_parallel* parallel : {&backward, &threads}) {
      const Result shared = compute(function, problem, index, parallel);
      CHECK(shared.dw.memory == alone.dw.memory);
      CHECK(shared.db == alone.db);
    }
  }
}

inline void check_shapes(const Function& function, const std::vector<Shape>& shapes) {
  std::mt19937 random(7);
  with_each_isa([&] {
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      for (const Shape& shape : shapes) check_shape(function, shape, dtype, random);
    }
  });
}

struct Arguments {
  neq_tensor dy, x, dw;
  neq_window window;
  std::vector<int32_t> index;
  int64_t width;
  neq_scratch scratch;

  neq_status call(const Function& function) const {
    return function.run(&dy, &x, index.data(), width, &window, &dw, nullptr, scratch, nullptr);
  }
};

// A right call, in memory of its own, and wrong ones that differ from it.
class Refusals {
 public:
  // dw has `rows` of `inputs` kernels.
  Refusals(const Function& function, int64_t rows, int64_t inputs)
      : function_(function),
        data_(2 * 4 * 5 * 5, 1.0f),
        out_(rows * inputs * 9, 5.0f),
        room_(9999) {
    right.dy = right.x = {data_.data(), NEQ_F32, 4, {2, 4, 5, 5}, {100, 25, 5, 1}};
    right.dw = {out_.data(), NEQ_F32, 4, {rows, inputs, 3, 3}, {inputs * 9, 9, 3, 1}};
    right.window = {{1, 1}, {1, 1}, {1, 1}};
    right.index = {1, 3};
    right.width = 2;
    right.scratch = {room_.data(), static_cast<int64_t>(room_.size() * sizeof(double))};
  }

  template <class Change>
  void refused(const char* text, Change change) const {
    Arguments wrong = right;
    change(wrong);
    CHECK_REFUSED(wrong.call(function_), text);
    CHECK(std::count(out_.begin(), out_.end(), 5.0f) == static_cast<int64_t>(out_.size()));
  }

  // What no such function takes.
  void check_common() const {
    check_null_pointers();
    check_lists();
    check_tensors();
    check_windows();
  }

  Arguments right;

 private:
  void check_null_pointers() const {
    const Arguments& a = right;
    const auto call = [&](const neq_tensor* dy, const neq_tensor* x, const int32_t* index,
                          const neq_window* window, const neq_tensor* dw) {
      return function_.run(dy, x, index, 2, window, dw, nullptr, a.scratch, nullptr);
    };
    const int32_t* const index = a.index.data();
    CHECK_REFUSED(call(nullptr, &a.x, index, &a.window, &a.dw), "dy: expected a tensor");
    CHECK_REFUSED(call(&a.dy, nullptr, index, &a.window, &a.dw), "x: expected a tensor");
    CHECK_REFUSED(call(&a.dy, &a.x, index, &a.window, nullptr), "dw: expected a tensor");
    CHECK_REFUSED(call(&a.dy, &a.x, index, nullptr, &a.dw), "window: expected strides");
    CHECK_REFUSED(call(&a.dy, &a.x, nullptr, &a.window, &a.dw), "index: expected 2 channels");
    refused("dy: expected data", [](Arguments& wrong) { wrong.dy.data = nullptr; });
    refused("x: expected data", [](Arguments& wrong) { wrong.x.data = nullptr; });
    refused("dw: expected data", [](Arguments& wrong) { wrong.dw.data = nullptr; });
    refused("scratch: expected", [](Arguments& wrong) { wrong.scratch = {nullptr, 0}; });
    refused("scratch: expected", [](Arguments& wrong) { wrong.scratch.data = nullptr; });
    refused("aligned to 8", [](Arguments& wrong) {
      wrong.scratch.data = static_cast<char*>(wrong.scratch.data) + 4;
    });
    refused("scratch: expected", [&](Arguments& wrong) {
      wrong.scratch.bytes = function_.scratch(&a.dy, &a.x, 2, &a.window, &a.dw) - 1;
    });
  }

  void check_lists() const {
    for (const int64_t width : {-1, 5}) {
      refused("width: expected 0 to 4", [=](Arguments& wrong) { wrong.width = width; });
    }
    for (const auto& list :
         std::vector<std::vector<int32_t>>{{1, 1}, {3, 1}, {1, 4}, {-1, 1}, {1, -2}}) {
      refused("index: expected rising channels", [&](Arguments& wrong) { wrong.index = list; });
    }
    CHECK(function_.scratch(&right.dy, &right.x, 5, &right.window, &right.dw) == -1);
  }

  void check_tensors() const {
    refused("dy: expected [N, O, length]", [](Arguments& wrong) { wrong.dy.ndim = 2; });
    refused("x: expected dy's dtype", [](Arguments& wrong) { wrong.x.dtype = NEQ_BF16; });
    refused("dw: expected dy's dtype", [](Arguments& wrong) { wrong.dw.dtype = NEQ_F64; });
    refused("x: expected dy's batch", [](Arguments& wrong) { wrong.x.size[0] = 1; });
    refused("dy: expected size 4", [](Arguments& wrong) { wrong.x.size[2] = 4; });
    refused("x: expected sizes", [](Arguments& wrong) { wrong.x.size[1] = -1; });
    refused("dy: expected sizes", [](Arguments& wrong) { wrong.dy.stride[3] = -1; });
    refused("dw: expected shape", [](Arguments& wrong) { wrong.dw.size[0] += 1; });
    refused("dw: expected shape", [](Arguments& wrong) { wrong.dw.size[1] += 1; });
    refused("dw: expected a kernel size", [](Arguments& wrong) { wrong.dw.size[2] = 0; });
    refused("memory of its own", [](Arguments& wrong) { wrong.dw.stride[0] = 0; });
    const int64_t most = int64_t{1} << 40;
    refused("dy: expected offsets", [=](Arguments& wrong) { wrong.dy.size[1] = INT64_MAX; });
    refused("x: expected offsets", [](Arguments& wrong) { wrong.x.stride[0] = INT64_MAX; });
    refused("dy: expected offsets",
            [=](Arguments& wrong) { wrong.dy.size[2] = wrong.dy.size[3] = most; });
    // Kernels whose product overflows, of no channels.
    refused("dw: expected kernels of", [=](Arguments& wrong) {
      wrong.dy = wrong.x = {nullptr, NEQ_F32, 4, {2, 0, 0, 0}, {0, 0, 0, 0}};
      const int64_t inputs = wrong.dw.size[1] == 1 ? 1 : 0;
      wrong.dw = {nullptr, NEQ_F32, 4, {0, inputs, most, most}, {0, 0, 0, 0}};
      wrong.width = 0;
    });
  }

  void check_windows() const {
    for (const neq_window& window :
         {neq_window{{0, 1}, {1, 1}, {1, 1}}, neq_window{{1, 1}, {1, -1}, {1, 1}},
          neq_window{{1, 1}, {1, 1}, {0, 1}}}) {
      refused("window: expected stride and", [&](Arguments& wrong) { wrong.window = window; });
    }
    for (const int64_t vast : {INT64_MAX, int64_t{1} << 31}) {
      refused("all below 2^31", [=](Arguments& wrong) { wrong.window.stride[1] = vast; });
      refused("all below 2^31", [=](Arguments& wrong) { wrong.window.padding[0] = vast; });
      refused("all below 2^31", [=](Arguments& wrong) { wrong.window.dilation[0] = vast; });
    }
    // Steps through x beyond 64 bits, of which none is taken.
    refused("window: expected strides whose steps", [](Arguments& wrong) {
      wrong.window = {{INT32_MAX, 1}, {1, 1}, {1, 1}};
      wrong.dy.size[2] = wrong.x.size[2] = 1;
      wrong.x.stride[2] = int64_t{1} << 50;
    });
  }

  Function function_;
  std::vector<float> data_;
  std::vector<float> out_;
  std::vector<double> room_;
};

// An input of padding alone, of which there is no memory.
inline void check_input_of_padding(const Function& function, int64_t rows, int64_t inputs) {
  const Refusals refusals(function, rows, inputs);
  Arguments call = refusals.right;
  std::vector<float> gradient(5, 1.0f);
  std::vector<float> out(rows * inputs * 9, 5.0f);
  call.dy = {gradient.data(), NEQ_F32, 4, {2, 4, 2, 5}, {0, 0, 0, 1}};
  call.x = {nullptr, NEQ_F32, 4, {2, 4, 0, 5}, {0, 0, 9, 1}};
  call.window = {{1, 1}, {3, 1}, {2, 1}};
  call.dw.data = out.data();
  CHECK(call.call(function) == NEQ_OK);
  CHECK(std::count(out.begin(), out.end(), 0.0f) == static_cast<int64_t>(out.size()));
}

}  // namespace convolution
