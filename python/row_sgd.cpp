// row_sgd for torch: the lists as the core's parameters, and the call.
#ifdef NEQ_WITH_CUDA
#include "on_cuda.h"
#endif
#include "operators.h"
#include "row_step.h"

namespace neq::python {
namespace {

constexpr const char* kOp = "row_sgd";

void on_cpu(const neq_sgd& options, const neq_row_parameter* parameters, int64_t n) {
  const int64_t bytes = neq_row_sgd_cpu_scratch(&options, parameters, n);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_row_sgd_cpu(&options, parameters, n, {scratch.get(), bytes}, &threads), kOp);
}

#ifdef NEQ_WITH_CUDA
void on_cuda(const neq_sgd& options, const neq_row_parameter* parameters, int64_t n,
             const Tensor& beside) {
  const OnCuda here(beside, kOp);
  check(neq_row_sgd_cuda(&options, parameters, n, here.stream()), kOp);
}
#endif

}  // namespace

void row_sgd(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
             const std::vector<Tensor>& momentum_buffers, const std::vector<Tensor>& index,
             const std::vector<int64_t>& count, const std::vector<int64_t>& dim, double lr,
             double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
  std::vector<Named> tensors = {{"params", &params}, {"grads", &grads}};
  if (momentum != 0) tensors.emplace_back("momentum_buffers", &momentum_buffers);
  const auto parameters = parameters_of(tensors, {index, count, dim}, kOp);
  const neq_sgd options = {lr, momentum, dampening, weight_decay, nesterov, maximize};
  const auto n = static_cast<int64_t>(parameters.size());
#ifdef NEQ_WITH_CUDA
  const bool cuda = n > 0 && params[0].is_cuda();
  if (cuda) on_cuda(options, parameters.data(), n, params[0]);
  if (!cuda) on_cpu(options, parameters.data(), n);
#else
  on_cpu(options, parameters.data(), n);
#endif
}

}  // namespace neq::python
