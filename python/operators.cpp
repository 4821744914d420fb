// The operators as torch sees them: schemas, and which function serves which device.
#include "operators.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(neq_kernels, library) {
  library.def("channel_moments(Tensor a, Tensor b, int dim, bool per_sample) -> Tensor");
  library.def(
      "pack_channels(Tensor dy, Tensor index, int width, int dim, bool bias) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(neq_kernels, CPU, library) {
  library.impl("channel_moments", TORCH_BOX(&neq::python::channel_moments));
  library.impl("pack_channels", TORCH_BOX(&neq::python::pack_channels));
}
