// channel_moments for torch: allocates the output and calls the core.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "on_cuda.h"
#include "operators.h"
#include "tensor.h"

namespace neq::python {
namespace {

constexpr const char* kOp = "channel_moments";

struct Call {
  neq_tensor a;
  neq_tensor b;
  int32_t dim;
  bool per_sample;
  double* moments;
};

void on_cpu(const Call& call) {
  const int64_t bytes =
      neq_channel_moments_cpu_scratch(&call.a, &call.b, call.dim, call.per_sample);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_channel_moments_cpu(&call.a, &call.b, call.dim, call.per_sample, call.moments,
                                {scratch.get(), bytes}, &threads),
        kOp);
}

#ifdef NEQ_WITH_CUDA
void on_cuda(const Call& call, const Tensor& a) {
  const OnCuda here(a, kOp);
  const int64_t bytes =
      neq_channel_moments_cuda_scratch(&call.a, &call.b, call.dim, call.per_sample);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const Tensor scratch = scratch_on(a, bytes);
  check(neq_channel_moments_cuda(&call.a, &call.b, call.dim, call.per_sample, call.moments,
                                 {scratch.data_ptr(), bytes}, here.stream()),
        kOp);
}
#endif

}  // namespace

Tensor channel_moments(const Tensor& a, const Tensor& b, int64_t dim, bool per_sample) {
  const neq_tensor left = view(a, kOp, "a");
  const neq_tensor right = view(b, kOp, "b");
  const int32_t axis = checked_dim(dim, a, kOp, "a");
  if (b.device() != a.device()) {
    throw std::runtime_error(std::string(kOp) + ": b: expected on a's device; move it there");
  }
  // Before anything is allocated by sizes that may not fit.
  if (neq_channel_moments_cpu_scratch(&left, &right, axis, per_sample) < 0) {
    check(NEQ_INVALID_ARGUMENT, kOp);
  }
  std::vector<int64_t> sizes = {3, left.size[axis]};
  if (per_sample) sizes.insert(sizes.begin() + 1, left.size[0]);
  const Tensor moments = uninitialized(a, sizes, ScalarType::Double);
  const Call call = {left, right, axis, per_sample, static_cast<double*>(moments.data_ptr())};
#ifdef NEQ_WITH_CUDA
  if (a.is_cuda()) {
    on_cuda(call, a);
    return moments;
  }
#endif
  on_cpu(call);
  return moments;
}

}  // namespace neq::python
