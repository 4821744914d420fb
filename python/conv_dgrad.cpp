// conv_dgrad for torch: allocates dX in the memory format asked for and calls the core.
#include <memory>
#include <optional>

#include "operators.h"
#include "tensor.h"
#include "window.h"

namespace neq::python {
namespace {

using torch::headeronly::MemoryFormat;

constexpr const char* kOp = "conv_dgrad";

void check_shapes(const Tensor& dy, const Tensor& weight, const Numbers& size, bool channels_last) {
  if (weight.dim() != dy.dim() || size.size() + 2 != static_cast<size_t>(dy.dim())) {
    throw std::runtime_error(
        std::string(kOp) + ": expected weight and a size of as many dimensions as dy with shape " +
        shape_of(dy) + ", got weight with shape " + shape_of(weight) + " and " +
        std::to_string(size.size()) + " sizes");
  }
  for (const int64_t n : size) {
    if (n >= 0) continue;
    throw std::runtime_error(std::string(kOp) + ": size: expected sizes of at least 0, got " +
                             std::to_string(n));
  }
  if (channels_last && dy.dim() != 4) {
    throw std::runtime_error(std::string(kOp) +
                             ": channels_last: expected 2 spatial dimensions, got dy with shape " +
                             shape_of(dy) + "; pass False");
  }
}

}  // namespace

Tensor conv_dgrad(const Tensor& dy, const Tensor& weight, const Tensor& index, int64_t width,
                  Numbers size, Numbers stride, Numbers padding, Numbers dilation,
                  bool channels_last) {
  const neq_tensor gradient = view(dy, kOp, "dy");
  const neq_tensor kernel = view(weight, kOp, "weight");
  check_index(index, width, dy, kOp);
  check_beside(weight, dy, kOp, "weight");
  const neq_window window = window_of(dy, stride, padding, dilation, kOp);
  check_shapes(dy, weight, size, channels_last);
  Numbers sizes = {dy.size(0), weight.size(1)};
  sizes.insert(sizes.end(), size.begin(), size.end());
  const Tensor dx = channels_last
                        ? torch::stable::empty(sizes, dy.scalar_type(), std::nullopt, dy.device(),
                                               std::nullopt, MemoryFormat::ChannelsLast)
                        : uninitialized(dy, sizes);
  const neq_tensor result = view(dx, kOp, "dx");
  const int64_t bytes = neq_conv_dgrad_cpu_scratch(&gradient, &kernel, width, &window, &result);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_conv_dgrad_cpu(&gradient, &kernel, static_cast<const int32_t*>(index.data_ptr()), width,
                           &window, &result, {scratch.get(), bytes}, &threads),
        kOp);
  return dx;
}

}  // namespace neq::python
