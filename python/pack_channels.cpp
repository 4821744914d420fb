// pack_channels for torch: allocates the outputs and calls the core.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#ifdef NEQ_WITH_CUDA
#include "on_cuda.h"
#endif
#include "operators.h"
#include "tensor.h"

namespace neq::python {
namespace {

using torch::headeronly::MemoryFormat;

constexpr const char* kOp = "pack_channels";

// channels_last in, channels_last out; the fake in native.py decides in the same way.
MemoryFormat format_like(const Tensor& dy, int32_t dim) {
  const bool has_format = dim == 1 && (dy.dim() == 4 || dy.dim() == 5);
  if (!has_format || dy.stride(1) != 1 || dy.is_contiguous()) return MemoryFormat::Contiguous;
  return dy.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

// What the core is told, the same on every device.
struct Call {
  neq_tensor source;
  int32_t dim;
  const int32_t* index;
  neq_tensor target;
  void* bias;
};

void on_cpu(const Call& call) {
  const int64_t bytes =
      neq_pack_channels_cpu_scratch(&call.source, call.dim, &call.target, call.bias);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_pack_channels_cpu(&call.source, call.dim, call.index, &call.target, call.bias,
                              {scratch.get(), bytes}, &threads),
        kOp);
}

#ifdef NEQ_WITH_CUDA
void on_cuda(const Call& call, const Tensor& dy) {
  const OnCuda here(dy, kOp);
  const int64_t bytes =
      neq_pack_channels_cuda_scratch(&call.source, call.dim, &call.target, call.bias);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const Tensor scratch = scratch_on(dy, bytes);
  check(neq_pack_channels_cuda(&call.source, call.dim, call.index, &call.target, call.bias,
                               {scratch.data_ptr(), bytes}, here.stream()),
        kOp);
}
#endif

}  // namespace

std::tuple<Tensor, Tensor> pack_channels(const Tensor& dy, const Tensor& index, int64_t width,
                                         int64_t dim, bool bias) {
  const neq_tensor source = view(dy, kOp, "dy");
  const int32_t axis = checked_dim(dim, dy, kOp, "dy");
  check_index(index, width, dy, kOp);

  std::vector<int64_t> sizes(source.size, source.size + source.ndim);
  sizes[axis] = width;
  const MemoryFormat format = format_like(dy, axis);
  const Tensor packed = format == MemoryFormat::Contiguous
                            ? uninitialized(dy, sizes)
                            : torch::stable::empty(sizes, dy.scalar_type(), std::nullopt,
                                                   dy.device(), std::nullopt, format);
  const Tensor sums = uninitialized(dy, {bias ? width : 0});

  const Call call = {source, axis, static_cast<const int32_t*>(index.data_ptr()),
                     view(packed, kOp, "packed"), bias ? sums.data_ptr() : nullptr};
#ifdef NEQ_WITH_CUDA
  if (dy.is_cuda()) {
    on_cuda(call, dy);
    return {packed, sums};
  }
#endif
  on_cpu(call);
  return {packed, sums};
}

}  // namespace neq::python
