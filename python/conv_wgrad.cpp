// conv_wgrad for torch: allocates the rows of the active channels and calls the core.
#include <memory>
#include <tuple>

#include "operators.h"
#include "tensor.h"
#include "window.h"

namespace neq::python {

std::tuple<Tensor, Tensor> conv_wgrad_rows(const Tensor& dy, const Tensor& x, const Tensor& index,
                                           int64_t width, Numbers kernel, Numbers stride,
                                           Numbers padding, Numbers dilation, bool bias) {
  constexpr const char* kOp = "conv_wgrad_rows";
  const neq_tensor gradient = view(dy, kOp, "dy");
  const neq_tensor input = view(x, kOp, "x");
  check_index(index, width, dy, kOp);
  check_beside(x, dy, kOp);
  const neq_window window = window_of(dy, stride, padding, dilation, kOp);
  if (x.dim() != dy.dim() || kernel.size() + 2 != static_cast<size_t>(dy.dim())) {
    throw std::runtime_error(std::string(kOp) +
                             ": expected x and a kernel of as many dimensions as " +
                             "dy with shape " + shape_of(dy) + ", got x with shape " + shape_of(x) +
                             " and " + std::to_string(kernel.size()) + " kernel sizes");
  }
  Numbers sizes = {width, x.size(1)};
  sizes.insert(sizes.end(), kernel.begin(), kernel.end());
  const Tensor rows = uninitialized(dy, sizes);
  const Tensor sums = uninitialized(dy, {bias ? width : 0});
  const neq_tensor dw = view(rows, kOp, "kernel");
  const int64_t bytes = neq_conv_wgrad_cpu_scratch(&gradient, &input, width, &window, &dw);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_conv_wgrad_cpu(&gradient, &input, static_cast<const int32_t*>(index.data_ptr()), width,
                           &window, &dw, bias ? sums.data_ptr() : nullptr, {scratch.get(), bytes},
                           &threads),
        kOp);
  return {rows, sums};
}

}  // namespace neq::python
