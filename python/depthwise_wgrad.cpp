// depthwise_wgrad for torch: allocates the outputs and calls the core.
#include <memory>
#include <tuple>

#ifdef NEQ_WITH_CUDA
#include "on_cuda.h"
#endif
#include "operators.h"
#include "tensor.h"
#include "window.h"

namespace neq::python {
namespace {

constexpr const char* kOp = "depthwise_wgrad";

// What the core is told, the same on every device.
struct Call {
  neq_tensor dy;
  neq_tensor x;
  const int32_t* index;
  int64_t width;
  neq_window window;
  neq_tensor dw;
  void* db;
};

void on_cpu(const Call& call) {
  const int64_t bytes =
      neq_depthwise_wgrad_cpu_scratch(&call.dy, &call.x, call.width, &call.window, &call.dw);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_depthwise_wgrad_cpu(&call.dy, &call.x, call.index, call.width, &call.window, &call.dw,
                                call.db, {scratch.get(), bytes}, &threads),
        kOp);
}

#ifdef NEQ_WITH_CUDA
void on_cuda(const Call& call, const Tensor& dy) {
  const OnCuda here(dy, kOp);
  const int64_t bytes =
      neq_depthwise_wgrad_cuda_scratch(&call.dy, &call.x, call.width, &call.window, &call.dw);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const Tensor scratch = scratch_on(dy, bytes);
  check(neq_depthwise_wgrad_cuda(&call.dy, &call.x, call.index, call.width, &call.window, &call.dw,
                                 call.db, {scratch.data_ptr(), bytes}, here.stream()),
        kOp);
}
#endif

}  // namespace

std::tuple<Tensor, Tensor> depthwise_wgrad(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                           const Tensor& index, int64_t width, Numbers stride,
                                           Numbers padding, Numbers dilation, bool bias) {
  const neq_tensor gradient = view(dy, kOp, "dy");
  const neq_tensor input = view(x, kOp, "x");
  check_index(index, width, dy, kOp);
  check_beside(x, dy, kOp);
  const neq_window window = window_of(dy, stride, padding, dilation, kOp);

  const Tensor rows = gradient_of(dy, weight.sizes(), weight.strides());
  const int64_t sums_size[] = {bias ? dy.size(1) : 0};
  const Tensor sums = torch::stable::new_empty(dy, sums_size);
  const Call call = {gradient,
                     input,
                     static_cast<const int32_t*>(index.data_ptr()),
                     width,
                     window,
                     view(rows, kOp, "weight"),
                     bias ? sums.data_ptr() : nullptr};
#ifdef NEQ_WITH_CUDA
  if (dy.is_cuda()) {
    on_cuda(call, dy);
    return {rows, sums};
  }
#endif
  on_cpu(call);
  return {rows, sums};
}

}  // namespace neq::python
