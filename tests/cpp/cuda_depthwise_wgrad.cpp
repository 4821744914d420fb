// neq_depthwise_wgrad_cuda on the emulated device against a loop nest; the same bytes in every
// order of threads and blocks, on a small device and on a large one.
#include "cuda_emulation.h"
#include "depthwise_wgrad.h"

namespace {

using namespace depthwise_wgrad;
namespace emulation = neq::emulation;

Result compute(const Problem& problem, const std::vector<int32_t>& index, bool bias = true) {
  Result result = outputs_for(problem);
  const auto width = static_cast<int64_t>(index.size());
  const int64_t bytes = neq_depthwise_wgrad_cuda_scratch(&problem.dy.view, &problem.x.view, width,
                                                         &problem.window, &result.dw.view);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes, 0xff);
  const int64_t launches = emulation::launches();
  CHECK(neq_depthwise_wgrad_cuda(&problem.dy.view, &problem.x.view, index.data(), width,
                                 &problem.window, &result.dw.view,
                                 bias ? result.db.data() : nullptr, {scratch.data(), bytes},
                                 nullptr) == NEQ_OK);
  CHECK(emulation::launches() - launches <= 2);
  return result;
}

std::vector<uint8_t> bytes_of_both(const Result& result) {
  std::vector<uint8_t> all = result.dw.memory;
  all.insert(all.end(), result.db.begin(), result.db.end());
  return all;
}

// Emulated barriers are slow: one type sees everything, the others a third of the channels.
void check_shape(const Shape& shape, neq_dtype dtype, std::mt19937& random) {
  const Problem problem(shape, dtype, random);
  const int64_t outputs = problem.outputs();
  for (const int64_t count : {int64_t{0}, int64_t{1}, outputs / 3, outputs}) {
    if (count > outputs || (dtype != NEQ_F32 && count != outputs / 3)) continue;
    std::vector<int32_t> index = some_channels(outputs, count, random);
    if (count == outputs / 3) index.resize(std::min(count + 3, outputs), -1);
    check_result(problem, index, compute(problem, index));
  }
}

void check_shapes() {
  std::mt19937 random(7);
  std::vector<Shape> shapes = depthwise_shapes();
  for (const Order order : {kPlanes, kLast, kMixed}) {
    shapes.push_back({1, 3, 3, {9, 20}, {7, 7}, {1, 1}, {3, 3}, {1, 1}, order});
    shapes.push_back({1, 1, 1, {2, 600}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order});
  }
  for (const Shape& shape : shapes) {
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      check_shape(shape, dtype, random);
    }
  }
}

// Large devices cut the positions of few channels into many parts, small ones into none.
void check_orders() {
  std::mt19937 random(9);
  for (const Order order : {kPlanes, kLast, kMixed}) {
    const Problem problem({20, 5, 5, {12, 10}, {4, 3}, {1, 1}, {1, 1}, {1, 1}, order}, NEQ_F32,
                          random);
    const std::vector<int32_t> index = {1, 4, -1};
    for (const int multiprocessors : {1, 132}) {
      emulation::set_device({multiprocessors});
      Result result = compute(problem, index);
      CHECK(emulation::same_in_every_order([&] {
        result = compute(problem, index);
        return bytes_of_both(result);
      }));
      check_result(problem, index, result);
    }
  }
  emulation::set_device({});
}

// Without db, the same dw.
void check_without_bias() {
  std::mt19937 random(3);
  const Problem problem({2, 6, 6, {5, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, kPlanes}, NEQ_F16,
                        random);
  const std::vector<int32_t> index = {0, 3};
  const Result both = compute(problem, index);
  const Result alone = compute(problem, index, false);
  CHECK(alone.dw.memory == both.dw.memory);
  CHECK(std::count(alone.db.begin(), alone.db.end(), 0xff) == 12);
}

// What is not a channel is padding; nobody can check a list that lies on the device.
void check_index_out_of_range() {
  std::mt19937 random(3);
  for (const Order order : {kPlanes, kLast}) {
    const Problem problem({2, 6, 6, {5, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order}, NEQ_F32,
                          random);
    check_result(problem, {1, 4}, compute(problem, {1, 4, 6, INT32_MAX, INT32_MIN}));
    check_result(problem, {}, compute(problem, {-7}));
  }
}

// A running sum in fp32 would be off by hundreds of eps here.
void check_long_sums() {
  std::mt19937 random(5);
  for (const Order order : {kPlanes, kLast}) {
    for (const int multiprocessors : {1, 132}) {
      emulation::set_device({multiprocessors});
      Problem problem({4, 1, 1, {202, 202}, {3, 3}, {1, 1}, {0, 0}, {1, 1}, order}, NEQ_F32,
                      random);
      for (Tensor* tensor : {&problem.dy, &problem.x}) {
        const auto count = static_cast<int64_t>(tensor->memory.size() / sizeof(float));
        for (int64_t i = 0; i < count; ++i) write(tensor->view.data, NEQ_F32, i, 0.1f);
      }
      const Result result = compute(problem, {0});
      const double value = static_cast<double>(0.1f);
      const double length = 4 * 200 * 200;
      CHECK(std::fabs(result.dw.at(0, 0, 1, 1) / (length * value * value) - 1) <= 5e-7);
      CHECK(std::fabs(read(result.db.data(), NEQ_F32, 0) / (length * value) - 1) <= 5e-7);
    }
  }
  emulation::set_device({});
}

void check_refusals() {
  std::vector<float> data(2 * 4 * 5 * 5, 1.0f);
  std::vector<float> out(4 * 9, 5.0f);
  std::vector<double> room(1 << 16);
  const neq_scratch scratch = {room.data(), static_cast<int64_t>(room.size() * sizeof(double))};
  const neq_tensor dy = {data.data(), NEQ_F32, 4, {2, 4, 5, 5}, {100, 25, 5, 1}};
  const neq_tensor dw = {out.data(), NEQ_F32, 4, {4, 1, 3, 3}, {9, 9, 3, 1}};
  const neq_window window = {{1, 1}, {1, 1}, {1, 1}};
  const int32_t index[] = {1, 3};
  const auto call = [&](const neq_tensor* gradient, const neq_tensor* x, const int32_t* list,
                        int64_t width, const neq_window* slides, const neq_tensor* rows,
                        neq_scratch memory) {
    return neq_depthwise_wgrad_cuda(gradient, x, list, width, slides, rows, nullptr, memory,
                                    nullptr);
  };
  CHECK_REFUSED(call(nullptr, &dy, index, 2, &window, &dw, scratch), "dy: expected a tensor");
  CHECK_REFUSED(call(&dy, nullptr, index, 2, &window, &dw, scratch), "x: expected a tensor");
  CHECK_REFUSED(call(&dy, &dy, index, 2, &window, nullptr, scratch), "dw: expected a tensor");
  CHECK_REFUSED(call(&dy, &dy, index, 2, nullptr, &dw, scratch), "window: expected strides");
  CHECK_REFUSED(call(&dy, &dy, nullptr, 2, &window, &dw, scratch), "index: expected 2 channels");
  CHECK_REFUSED(call(&dy, &dy, index, 5, &window, &dw, scratch), "width: expected 0 to 4");
  CHECK_REFUSED(call(&dy, &dy, index, 2, &window, &dw, {nullptr, 0}), "scratch: expected");
  neq_tensor odd = dy;
  odd.data = reinterpret_cast<char*>(data.data()) + 2;
  CHECK_REFUSED(call(&odd, &dy, index, 2, &window, &dw, scratch), "dy: expected an address");
  CHECK_REFUSED(call(&dy, &odd, index, 2, &window, &dw, scratch), "x: expected an address");
  odd = dw;
  odd.data = reinterpret_cast<char*>(out.data()) + 1;
  CHECK_REFUSED(call(&dy, &dy, index, 2, &window, &odd, scratch), "dw: expected an address");
  CHECK_REFUSED(neq_depthwise_wgrad_cuda(&dy, &dy, index, 2, &window, &dw,
                                         reinterpret_cast<char*>(out.data()) + 1, scratch, nullptr),
                "db: expected an address");
  CHECK(neq_depthwise_wgrad_cuda_scratch(&dy, &dy, 5, &window, &dw) == -1);
  // A dilation far beyond x: the middle weights meet it, the others are 2^30 away.
  const int64_t far = int64_t{1} << 30;
  const neq_window apart = {{1, 1}, {far, 1}, {far, 1}};
  emulation::fail_next_launch(cudaErrorInvalidConfiguration);
  CHECK(call(&dy, &dy, index, 2, &window, &dw, scratch) == NEQ_CUDA_ERROR);
  CHECK(std::count(out.begin(), out.end(), 5.0f) == 36);
  CHECK(call(&dy, &dy, index, 2, &apart, &dw, scratch) == NEQ_OK);
  CHECK(out[9] == 0 && out[13] == 50 && out[12] == 40 && out[0] == 0);
}

}  // namespace

int main() {
  check_index_out_of_range();
  check_refusals();
  check_long_sums();
  check_without_bias();
  check_orders();
  check_shapes();
  std::puts("cuda_depthwise_wgrad: ok");
}
