// neq_row_adamw_cpu on right and wrong arguments.
#include "row_step.h"

namespace {

neq_adamw random_options(Input& input) {
  neq_adamw options{};
  options.lr = input.pick<double>({0, 0.01, 0.001});
  options.beta1 = input.pick<double>({0, 0.9, 0.5});
  options.beta2 = input.pick<double>({0, 0.999, 0.5});
  options.eps = input.pick<double>({0.5, 1});  // keeps the quotient as exact as its parts
  options.weight_decay = input.pick<double>({0, 0.01});
  options.decoupled = input.once_in(2);
  options.amsgrad = input.once_in(2);
  options.maximize = input.once_in(2);
  return options;
}

Right break_options(Input& input, neq_adamw* options) {
  const double wrong = input.pick<double>({NAN, INFINITY, -INFINITY});
  double* const numbers[] = {&options->lr, &options->eps, &options->weight_decay, &options->beta1,
                             &options->beta2};
  const int64_t place = input.between(0, 4);
  *numbers[place] = place >= 3 && input.once_in(2) ? input.pick<double>({1, -0.1, 1.5}) : wrong;
  return Right::kNo;
}

}  // namespace

void fuzz(Input& input) {
  force_isa(input);
  neq_adamw options = random_options(input);
  const neq_adamw* given = &options;
  Right right = Right::kYes;
  if (input.once_in(16)) right = break_options(input, &options);
  Call call = random_call(input, options.amsgrad ? 5 : 4);
  if (input.once_in(64)) {
    given = nullptr;
    right = Right::kNo;
  }
  const auto run = [&](const neq_row_parameter* parameters, int64_t count, neq_scratch scratch,
                       const neq_parallel* parallel) {
    return neq_row_adamw_cpu(given, parameters, count, scratch, parallel);
  };
  const auto scratch_of = [&](const neq_row_parameter* parameters, int64_t count) {
    return neq_row_adamw_cpu_scratch(given, parameters, count);
  };
  const auto step = [&](const neq_row_parameter& parameter, double* x, double* scale) {
    const double decay = options.lr * options.weight_decay;
    double g = options.maximize ? -x[1] : x[1];
    if (!options.decoupled) g += options.weight_decay * x[0];
    scale[2] = std::abs(x[2]) + std::abs(x[1]) + std::abs(x[0]);
    x[2] += (1 - options.beta1) * (g - x[2]);
    scale[3] = std::abs(x[3]) + g * g;
    x[3] = options.beta2 * x[3] + (1 - options.beta2) * g * g;
    scale[4] = std::abs(x[4]) + scale[3];
    const double largest = options.amsgrad ? (x[4] = std::max(x[4], x[3])) : x[3];
    const double rate = options.lr / (1 - std::pow(options.beta1, parameter.step));
    const double root = std::sqrt(largest / (1 - std::pow(options.beta2, parameter.step)));
    scale[0] = std::abs(x[0]) + rate * scale[2] / options.eps;
    x[0] = (options.decoupled ? 1 - decay : 1) * x[0] - rate * x[2] / (root + options.eps);
  };
  fuzz_rows(input, &call, right, true, run, scratch_of, step);
}
