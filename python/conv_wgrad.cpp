// conv_wgrad for torch: allocates the outputs and calls the core.
#include <memory>
#include <tuple>

#include "operators.h"
#include "tensor.h"
#include "window.h"

namespace neq::python {

std::tuple<Tensor, Tensor> conv_wgrad_rows(const Tensor& dy, const Tensor& x, const Tensor& index,
                                           int64_t width, Numbers dw_size, Numbers dw_stride,
                                           Numbers stride, Numbers padding, Numbers dilation,
                                           bool bias) {
  constexpr const char* kOp = "conv_wgrad_rows";
  const neq_tensor gradient = view(dy, kOp, "dy");
  const neq_tensor input = view(x, kOp, "x");
  check_index(index, width, dy, kOp);
  check_beside(x, dy, kOp);
  const neq_window window = window_of(dy, stride, padding, dilation, kOp);
  if (dw_size.size() != dw_stride.size()) {
    throw std::runtime_error(std::string(kOp) + ": dw_stride: expected " +
                             std::to_string(dw_size.size()) + " numbers like dw_size, got " +
                             std::to_string(dw_stride.size()));
  }
  const Tensor full = gradient_of(dy, dw_size, dw_stride);
  const Tensor sums = uninitialized(dy, {bias ? dy.size(1) : 0});
  const neq_tensor dw = view(full, kOp, "dw");
  const int64_t bytes = neq_conv_wgrad_cpu_scratch(&gradient, &input, width, &window, &dw);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_conv_wgrad_cpu(&gradient, &input, static_cast<const int32_t*>(index.data_ptr()), width,
                           &window, &dw, bias ? sums.data_ptr() : nullptr, {scratch.get(), bytes},
                           &threads),
        kOp);
  return {full, sums};
}

}  // namespace neq::python
