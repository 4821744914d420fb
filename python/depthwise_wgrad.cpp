// depthwise_wgrad for torch: allocates the outputs and calls the core.
#include <array>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "operators.h"
#include "tensor.h"

namespace neq::python {
namespace {

using Numbers = std::vector<int64_t>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

neq_window window_of(const Tensor& dy, const Numbers& stride, const Numbers& padding,
                     const Numbers& dilation, const char* op) {
  const auto dims = static_cast<size_t>(dy.dim() - 2);
  const std::array<std::pair<const char*, const Numbers&>, 3> all = {
      {{"stride", stride}, {"padding", padding}, {"dilation", dilation}}};
  for (const auto& [name, values] : all) {
    if ((dims == 1 || dims == 2) && values.size() == dims) continue;
    throw std::runtime_error(std::string(op) + ": " + name +
                             ": expected a number for each of 1 or "
                             "2 spatial dimensions of dy with shape " +
                             shape_of(dy) + ", got " + std::to_string(values.size()));
  }
  neq_window window{};
  for (size_t d = 0; d < dims; ++d) {
    window.stride[d] = stride[d];
    window.padding[d] = padding[d];
    window.dilation[d] = dilation[d];
  }
  return window;
}

// A gradient in the weight's own sizes and strides, of dy's type.
Tensor gradient_like(const Tensor& weight, const Tensor& dy) {
  Numbers sizes, strides;
  for (int64_t d = 0; d < weight.dim(); ++d) {
    sizes.push_back(weight.size(d));
    strides.push_back(weight.stride(d));
  }
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack = {from(dy),           from(Sizes(sizes)), from(Sizes(strides)),
                                       from(std::nullopt), from(std::nullopt), from(std::nullopt),
                                       from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

std::tuple<Tensor, Tensor> depthwise_wgrad(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                           const Tensor& index, int64_t width, Numbers stride,
                                           Numbers padding, Numbers dilation, bool bias) {
  constexpr const char* kOp = "depthwise_wgrad";
  const neq_tensor gradient = view(dy, kOp, "dy");
  const neq_tensor input = view(x, kOp, "x");
  check_index(index, width, dy, kOp);
  const neq_window window = window_of(dy, stride, padding, dilation, kOp);

  const Tensor rows = gradient_like(weight, dy);
  const int64_t sums_size[] = {bias ? dy.size(1) : 0};
  const Tensor sums = torch::stable::new_empty(dy, sums_size);
  const neq_tensor dw = view(rows, kOp, "weight");
  const int64_t bytes = neq_depthwise_wgrad_cpu_scratch(&gradient, &input, width, &window, &dw);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_depthwise_wgrad_cpu(&gradient, &input, static_cast<const int32_t*>(index.data_ptr()),
                                width, &window, &dw, bias ? sums.data_ptr() : nullptr,
                                {scratch.get(), bytes}, &threads),
        kOp);
  return {rows, sums};
}

}  // namespace neq::python
