// row_sgd: b = momentum * b + (1 - dampening) * (g + decay * p),  p = p - lr * b,  for the active
// rows of all parameters in one pass over them; nesterov steps by g + momentum * b instead. The
// loops are those of row_step_loops.h, the walk over the rows row_step.cpp's.
#include "row_step.h"

namespace {

neq::rows::Numbers numbers(const void* options, const neq_row_parameter& parameter) {
  return neq::rows::numbers_of(*static_cast<const neq_sgd*>(options), parameter);
}

neq_status check(const neq_sgd* options, const neq_row_parameter* parameters, int64_t count) {
  const neq_status status = neq::rows::check(options);
  if (status != NEQ_OK) return status;
  return neq::rows::check(parameters, count, neq::rows::formula_of(*options));
}

}  // namespace

int64_t neq_row_sgd_cpu_scratch(const neq_sgd* options, const neq_row_parameter* parameters,
                                int64_t count) {
  if (check(options, parameters, count) != NEQ_OK) return -1;
  return neq::rows::scratch_bytes(parameters, count);
}

neq_status neq_row_sgd_cpu(const neq_sgd* options, const neq_row_parameter* parameters,
                           int64_t count, neq_scratch scratch, const neq_parallel* parallel) {
  const neq_status status = check(options, parameters, count);
  if (status != NEQ_OK) return status;
  return neq::rows::step(neq::rows::formula_of(*options), parameters, count, numbers, options,
                         scratch, parallel);
}
