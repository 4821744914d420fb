// The portable loops of conv_wgrad.
#include "vectors_scalar.h"

#define NEQ_LOOP
#define NEQ_LOOP_INLINE inline
#include "conv_wgrad_loops.h"

namespace neq::conv {

const Kernels& scalar_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kKernels<Elements<Double>, 16, 4>;
    case NEQ_F16:
      return kKernels<Elements<Half>, 16, 4>;
    case NEQ_BF16:
      return kKernels<Elements<BFloat16>, 16, 4>;
    case NEQ_F32:
      break;
  }
  return kKernels<Elements<Float>, 16, 4>;
}

}  // namespace neq::conv
