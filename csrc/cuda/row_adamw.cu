// row_adamw: m += (1 - beta1) * (g - m),  v = beta2 * v + (1 - beta2) * g^2,
// p = keep * p - rate * m / (sqrt(v) * root + eps),  for the active rows of all parameters in one
// pass over them. The formula is row_step_formula.h's, the kernels are those of row_step.cuh.
#include "cuda/row_step.cuh"

neq_status neq_row_adamw_cuda(const neq_adamw* options, const neq_row_parameter* parameters,
                              int64_t count, void* stream) {
  using namespace neq::rows;
  neq_status status = check(options);
  if (status != NEQ_OK) return status;
  status = check(parameters, count, formula_of(*options));
  if (status != NEQ_OK) return status;
  return formula_of(*options) == Formula::kAdam
             ? step_formula<Formula::kAdam>(*options, parameters, count, stream)
             : step_formula<Formula::kAmsgrad>(*options, parameters, count, stream);
}
