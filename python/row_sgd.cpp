// row_sgd for torch: the lists as the core's parameters, and the call.
#include "operators.h"
#include "row_step.h"

namespace neq::python {

void row_sgd(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
             const std::vector<Tensor>& momentum_buffers, const std::vector<Tensor>& index,
             const std::vector<int64_t>& count, const std::vector<int64_t>& dim, double lr,
             double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
  constexpr const char* kOp = "row_sgd";
  std::vector<Named> tensors = {{"params", &params}, {"grads", &grads}};
  if (momentum != 0) tensors.emplace_back("momentum_buffers", &momentum_buffers);
  const auto parameters = parameters_of(tensors, {index, count, dim}, kOp);
  const neq_sgd options = {lr, momentum, dampening, weight_decay, nesterov, maximize};
  const auto n = static_cast<int64_t>(parameters.size());
  const int64_t bytes = neq_row_sgd_cpu_scratch(&options, parameters.data(), n);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_row_sgd_cpu(&options, parameters.data(), n, {scratch.get(), bytes}, &threads), kOp);
}

}  // namespace neq::python
