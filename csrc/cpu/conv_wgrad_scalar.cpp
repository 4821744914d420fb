// The portable loop of conv_wgrad.
#include "vectors_scalar.h"

#define NEQ_LOOP
#include "conv_wgrad_loops.h"

namespace neq::conv {

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  return kernels_of<Portable<float>, Portable<double>, 16, 4>(dtype);
}

}  // namespace neq::conv
