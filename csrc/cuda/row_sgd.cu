// row_sgd: b = momentum * b + (1 - dampening) * (g + decay * p),  p = p - lr * b,  for the active
// rows of all parameters in one pass over them; nesterov steps by g + momentum * b instead. The
// formula is row_step_formula.h's, the kernels are those of row_step.cuh.
#include "cuda/row_step.cuh"

neq_status neq_row_sgd_cuda(const neq_sgd* options, const neq_row_parameter* parameters,
                            int64_t count, void* stream) {
  using namespace neq::rows;
  neq_status status = check(options);
  if (status != NEQ_OK) return status;
  status = check(parameters, count, formula_of(*options));
  if (status != NEQ_OK) return status;
  return formula_of(*options) == Formula::kSgd
             ? step_formula<Formula::kSgd>(*options, parameters, count, stream)
             : step_formula<Formula::kSgdMomentum>(*options, parameters, count, stream);
}
