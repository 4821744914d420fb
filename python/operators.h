// The operators behind the schemas of operators.cpp, one source file each.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace neq::python {

torch::stable::Tensor channel_moments(const torch::stable::Tensor& a,
                                      const torch::stable::Tensor& b, int64_t dim, bool per_sample);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> pack_channels(
    const torch::stable::Tensor& dy, const torch::stable::Tensor& index, int64_t width, int64_t dim,
    bool bias);

}  // namespace neq::python
