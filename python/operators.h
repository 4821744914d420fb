// The operators behind the schemas of operators.cpp, one source file each.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace neq::python {

torch::stable::Tensor compact(const std::vector<torch::stable::Tensor>& layers, double epsilon);

torch::stable::Tensor channel_moments(const torch::stable::Tensor& a,
                                      const torch::stable::Tensor& b, int64_t dim, bool per_sample);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> pack_channels(
    const torch::stable::Tensor& dy, const torch::stable::Tensor& index, int64_t width, int64_t dim,
    bool bias);

void row_sgd(const std::vector<torch::stable::Tensor>& params,
             const std::vector<torch::stable::Tensor>& grads,
             const std::vector<torch::stable::Tensor>& momentum_buffers,
             const std::vector<torch::stable::Tensor>& index, const std::vector<int64_t>& count,
             const std::vector<int64_t>& dim, double lr, double momentum, double dampening,
             double weight_decay, bool nesterov, bool maximize);

void row_adamw(const std::vector<torch::stable::Tensor>& params,
               const std::vector<torch::stable::Tensor>& grads,
               const std::vector<torch::stable::Tensor>& exp_avgs,
               const std::vector<torch::stable::Tensor>& exp_avg_sqs,
               const std::vector<torch::stable::Tensor>& max_exp_avg_sqs,
               const std::vector<torch::stable::Tensor>& steps,
               const std::vector<torch::stable::Tensor>& index, const std::vector<int64_t>& count,
               const std::vector<int64_t>& dim, double lr, double beta1, double beta2, double eps,
               double weight_decay, bool decoupled, bool amsgrad, bool maximize);

// dW and db (shape [0] without `bias`) of a convolution with one input channel per group.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> depthwise_wgrad(
    const torch::stable::Tensor& dy, const torch::stable::Tensor& x,
    const torch::stable::Tensor& weight, const torch::stable::Tensor& index, int64_t width,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    bool bias);

// dX [N, C, *size] of a convolution without groups, from its active channels.
torch::stable::Tensor conv_dgrad(const torch::stable::Tensor& dy,
                                 const torch::stable::Tensor& weight,
                                 const torch::stable::Tensor& index, int64_t width,
                                 std::vector<int64_t> size, std::vector<int64_t> stride,
                                 std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                 bool channels_last);

// dW of the given sizes and strides, and db [O] (shape [0] without `bias`) of a convolution without
// groups; the rows of channels that are not listed are zero.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> conv_wgrad_rows(
    const torch::stable::Tensor& dy, const torch::stable::Tensor& x,
    const torch::stable::Tensor& index, int64_t width, std::vector<int64_t> dw_size,
    std::vector<int64_t> dw_stride, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, bool bias);

}  // namespace neq::python
