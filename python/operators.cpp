// The operators as torch sees them: schemas, and which function serves which device.
#include "operators.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(neq_kernels, library) {
  library.def("channel_moments(Tensor a, Tensor b, int dim, bool per_sample) -> Tensor");
  library.def("compact(Tensor[] layers, float epsilon) -> Tensor");
  library.def(
      "conv_dgrad(Tensor dy, Tensor weight, Tensor index, int width, int[] size, int[] stride, "
      "int[] padding, int[] dilation, bool channels_last) -> Tensor");
  library.def(
      "conv_wgrad_rows(Tensor dy, Tensor x, Tensor index, int width, int[] dw_size, "
      "int[] dw_stride, int[] stride, int[] padding, int[] dilation, bool bias) -> (Tensor, "
      "Tensor)");
  library.def(
      "depthwise_wgrad(Tensor dy, Tensor x, Tensor weight, Tensor index, int width, int[] stride, "
      "int[] padding, int[] dilation, bool bias) -> (Tensor, Tensor)");
  library.def(
      "pack_channels(Tensor dy, Tensor index, int width, int dim, bool bias) -> (Tensor, Tensor)");
  // One call for all parameters of one device and dtype; count[i] is -1 where every row is active,
  // index[i] is then not read.
  library.def(
      "row_sgd(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] index, "
      "int[] count, int[] dim, float lr, float momentum, float dampening, float weight_decay, "
      "bool nesterov, bool maximize) -> ()");
  library.def(
      "row_adamw(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, "
      "Tensor[] index, int[] count, int[] dim, float lr, float beta1, float beta2, float eps, "
      "float weight_decay, bool decoupled, bool amsgrad, bool maximize) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(neq_kernels, CPU, library) {
  library.impl("channel_moments", TORCH_BOX(&neq::python::channel_moments));
  library.impl("compact", TORCH_BOX(&neq::python::compact));
  library.impl("conv_dgrad", TORCH_BOX(&neq::python::conv_dgrad));
  library.impl("conv_wgrad_rows", TORCH_BOX(&neq::python::conv_wgrad_rows));
  library.impl("depthwise_wgrad", TORCH_BOX(&neq::python::depthwise_wgrad));
  library.impl("pack_channels", TORCH_BOX(&neq::python::pack_channels));
  library.impl("row_adamw", TORCH_BOX(&neq::python::row_adamw));
  library.impl("row_sgd", TORCH_BOX(&neq::python::row_sgd));
}

#ifdef NEQ_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(neq_kernels, CUDA, library) {
  library.impl("channel_moments", TORCH_BOX(&neq::python::channel_moments));
  library.impl("compact", TORCH_BOX(&neq::python::compact));
  library.impl("depthwise_wgrad", TORCH_BOX(&neq::python::depthwise_wgrad));
  library.impl("pack_channels", TORCH_BOX(&neq::python::pack_channels));
  library.impl("row_adamw", TORCH_BOX(&neq::python::row_adamw));
  library.impl("row_sgd", TORCH_BOX(&neq::python::row_sgd));
}
#endif
