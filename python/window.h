// The window of a convolution, from the numbers torch gives.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tensor.h"

namespace neq::python {

using Numbers = std::vector<int64_t>;

inline neq_window window_of(const Tensor& dy, const Numbers& stride, const Numbers& padding,
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

// Raises where `x` is not on dy's device.
inline void check_beside(const Tensor& x, const Tensor& dy, const char* op,
                         const char* name = "x") {
  if (x.device() == dy.device() || (x.is_cpu() && dy.is_cpu())) return;
  throw std::runtime_error(std::string(op) + ": " + name +
                           ": expected a tensor on dy's device, got one on another; move it "
                           "there");
}

}  // namespace neq::python
