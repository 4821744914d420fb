// neq_row_sgd_cpu on right and wrong arguments.
#include "row_step.h"

namespace {

neq_sgd random_options(Input& input) {
  neq_sgd options{};
  options.lr = input.pick<double>({0, 0.1, 0.01});
  options.momentum = input.pick<double>({0, 0.9, 0.5});
  options.dampening = input.pick<double>({0, 0.1});
  options.weight_decay = input.pick<double>({0, 0.01});
  options.nesterov = input.once_in(2);
  options.maximize = input.once_in(2);
  return options;
}

Right break_options(Input& input, neq_sgd* options) {
  const double wrong = input.pick<double>({NAN, INFINITY, -INFINITY});
  double* const numbers[] = {&options->lr, &options->momentum, &options->dampening,
                             &options->weight_decay};
  *numbers[input.between(0, 3)] = wrong;
  return Right::kNo;
}

}  // namespace

void fuzz(Input& input) {
  force_isa(input);
  neq_sgd options = random_options(input);
  const neq_sgd* given = &options;
  Right right = Right::kYes;
  if (input.once_in(16)) right = break_options(input, &options);
  Call call = random_call(input, options.momentum != 0 ? 3 : 2);
  if (input.once_in(64)) {
    given = nullptr;
    right = Right::kNo;
  }
  const auto run = [&](const neq_row_parameter* parameters, int64_t count, neq_scratch scratch,
                       const neq_parallel* parallel) {
    return neq_row_sgd_cpu(given, parameters, count, scratch, parallel);
  };
  const auto scratch_of = [&](const neq_row_parameter* parameters, int64_t count) {
    return neq_row_sgd_cpu_scratch(given, parameters, count);
  };
  const auto step = [&](const neq_row_parameter&, double* x, double* scale) {
    double g = (options.maximize ? -x[1] : x[1]) + options.weight_decay * x[0];
    scale[2] = std::abs(x[2]) + std::abs(x[1]) + std::abs(x[0]);
    if (options.momentum != 0) {
      x[2] = options.momentum * x[2] + (1 - options.dampening) * g;
      g = options.nesterov ? g + options.momentum * x[2] : x[2];
    }
    scale[0] = std::abs(x[0]) + 2 * options.lr * scale[2];
    x[0] -= options.lr * g;
  };
  fuzz_rows(input, &call, right, false, run, scratch_of, step);
}
