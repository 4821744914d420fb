// channel_moments for torch: allocates the output and calls the core.
#include <memory>
#include <optional>
#include <vector>

#include "operators.h"
#include "tensor.h"

namespace neq::python {

Tensor channel_moments(const Tensor& a, const Tensor& b, int64_t dim, bool per_sample) {
  constexpr const char* kOp = "channel_moments";
  const neq_tensor left = view(a, kOp, "a");
  const neq_tensor right = view(b, kOp, "b");
  const int32_t axis = checked_dim(dim, a, kOp, "a");
  const int64_t bytes = neq_channel_moments_cpu_scratch(&left, &right, axis, per_sample);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);

  std::vector<int64_t> sizes = {3, left.size[axis]};
  if (per_sample) sizes.insert(sizes.begin() + 1, left.size[0]);
  const Tensor moments = torch::stable::empty(sizes, ScalarType::Double, std::nullopt, a.device());
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_channel_moments_cpu(&left, &right, axis, per_sample,
                                static_cast<double*>(moments.data_ptr()), {scratch.get(), bytes},
                                &threads),
        kOp);
  return moments;
}

}  // namespace neq::python
