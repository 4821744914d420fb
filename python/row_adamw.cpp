// row_adamw for torch: the lists as the core's parameters, the steps counted, and the call.
#ifdef NEQ_WITH_CUDA
#include "on_cuda.h"
#endif
#include "operators.h"
#include "row_step.h"

namespace neq::python {
namespace {

constexpr const char* kOp = "row_adamw";

// A count of steps as torch.optim keeps it: one float or double on the CPU.
struct Count {
  void* data;
  bool is_double;

  double get() const {
    return is_double ? *static_cast<double*>(data) : *static_cast<float*>(data);
  }

  void set(double value) const {
    if (is_double) {
      *static_cast<double*>(data) = value;
    } else {
      *static_cast<float*>(data) = static_cast<float>(value);
    }
  }
};

Count count_of(const Tensor& step) {
  const ScalarType type = step.scalar_type();
  const bool counts = type == ScalarType::Double || type == ScalarType::Float;
  if (!counts || !step.is_cpu() || step.numel() != 1) {
    throw std::runtime_error(
        std::string("row_adamw: steps: expected one float32 or float64 on the CPU each, got ") +
        torch::headeronly::toString(type) + " " + shape_of(step) +
        (step.is_cpu() ? "" : " on another device") + "; move it with step.cpu()");
  }
  return {step.data_ptr(), type == ScalarType::Double};
}

void on_cpu(const neq_adamw& options, const neq_row_parameter* parameters, int64_t n) {
  const int64_t bytes = neq_row_adamw_cpu_scratch(&options, parameters, n);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_row_adamw_cpu(&options, parameters, n, {scratch.get(), bytes}, &threads), kOp);
}

#ifdef NEQ_WITH_CUDA
void on_cuda(const neq_adamw& options, const neq_row_parameter* parameters, int64_t n,
             const Tensor& beside) {
  const OnCuda here(beside, kOp);
  check(neq_row_adamw_cuda(&options, parameters, n, here.stream()), kOp);
}
#endif

}  // namespace

void row_adamw(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
               const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
               const std::vector<Tensor>& max_exp_avg_sqs, const std::vector<Tensor>& steps,
               const std::vector<Tensor>& index, const std::vector<int64_t>& count,
               const std::vector<int64_t>& dim, double lr, double beta1, double beta2, double eps,
               double weight_decay, bool decoupled, bool amsgrad, bool maximize) {
  std::vector<Named> tensors = {{"params", &params},
                                {"grads", &grads},
                                {"exp_avgs", &exp_avgs},
                                {"exp_avg_sqs", &exp_avg_sqs}};
  if (amsgrad) tensors.emplace_back("max_exp_avg_sqs", &max_exp_avg_sqs);
  check_length(steps.size(), params.size(), kOp, "steps");
  auto parameters = parameters_of(tensors, {index, count, dim}, kOp);
  std::vector<Count> counts;
  counts.reserve(steps.size());
  for (const Tensor& step : steps) {
    counts.push_back(count_of(step));
    parameters[counts.size() - 1].step = 1 + counts.back().get();
  }

  const neq_adamw options = {lr, beta1, beta2, eps, weight_decay, decoupled, amsgrad, maximize, 0};
  const auto n = static_cast<int64_t>(parameters.size());
#ifdef NEQ_WITH_CUDA
  const bool cuda = n > 0 && params[0].is_cuda();
  if (cuda) on_cuda(options, parameters.data(), n, params[0]);
  if (!cuda) on_cpu(options, parameters.data(), n);
#else
  on_cpu(options, parameters.data(), n);
#endif
  for (size_t i = 0; i < counts.size(); ++i) counts[i].set(parameters[i].step);
}

}  // namespace neq::python
