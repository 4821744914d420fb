// neq_depthwise_wgrad_cpu against a loop nest.
#include "depthwise_wgrad.h"

namespace {

using namespace depthwise_wgrad;

Result compute(const Problem& problem, const std::vector<int32_t>& index,
               const neq_parallel* parallel) {
  Result result = outputs_for(problem);
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

void check_shape(const Shape& shape, neq_dtype dtype, std::mt19937& random) {
  const Problem problem(shape, dtype, random);
  const int64_t outputs = problem.outputs();
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const int64_t count : {int64_t{0}, int64_t{1}, outputs / 3, outputs}) {
    if (count > outputs) continue;
    std::vector<int32_t> index = some_channels(outputs, count, random);
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
  const std::vector<Shape> shapes = depthwise_shapes();
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
