// The operators as torch sees them: schemas, and the CPU's implementations.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace neq::python {
namespace {

using torch::headeronly::MemoryFormat;

void check_index(const Tensor& index, int64_t width, const char* op) {
  const bool right = index.scalar_type() == ScalarType::Int && index.dim() == 1 && index.is_cpu();
  if (!right || width < 0 || index.size(0) < width || (width > 1 && index.stride(0) != 1)) {
    throw std::runtime_error(
        std::string(op) +
        ": index: expected a contiguous int32 list on dy's device, at least width=" +
        std::to_string(width) + " long (width >= 0), got " +
        torch::headeronly::toString(index.scalar_type()) + " " + shape_of(index) +
        (index.is_cpu() ? "" : " on another device") + "; pass ActiveSet's own index");
  }
}

int32_t checked_dim(int64_t dim, const Tensor& dy, const char* op) {
  const int64_t dims = dy.dim();
  if (dim < -dims || dim >= dims) {
    throw std::runtime_error(std::string(op) + ": dim: expected " + std::to_string(-dims) + " to " +
                             std::to_string(dims - 1) + ", a dimension of dy with shape " +
                             shape_of(dy) + ", got " + std::to_string(dim));
  }
  return static_cast<int32_t>(dim < 0 ? dim + dims : dim);
}

// channels_last in, channels_last out; the fake in ops.py decides in the same way.
MemoryFormat format_like(const Tensor& dy, int32_t dim) {
  const bool has_format = dim == 1 && (dy.dim() == 4 || dy.dim() == 5);
  if (!has_format || dy.stride(1) != 1 || dy.is_contiguous()) return MemoryFormat::Contiguous;
  return dy.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

std::tuple<Tensor, Tensor> pack_channels(const Tensor& dy, const Tensor& index, int64_t width,
                                         int64_t dim, bool bias) {
  constexpr const char* kOp = "pack_channels";
  const neq_tensor source = view(dy, kOp, "dy");
  const int32_t axis = checked_dim(dim, dy, kOp);
  check_index(index, width, kOp);

  std::vector<int64_t> sizes(source.size, source.size + source.ndim);
  sizes[axis] = width;
  const Tensor packed = torch::stable::empty(sizes, dy.scalar_type(), std::nullopt, dy.device(),
                                             std::nullopt, format_like(dy, axis));
  const int64_t sums_size[] = {bias ? width : 0};
  const Tensor sums = torch::stable::new_empty(dy, sums_size);

  const neq_tensor target = view(packed, kOp, "packed");
  void* const bias_data = bias ? sums.data_ptr() : nullptr;
  const int64_t bytes = neq_pack_channels_cpu_scratch(&source, axis, &target, bias_data);
  if (bytes < 0) check(NEQ_INVALID_ARGUMENT, kOp);
  const std::unique_ptr<double[]> scratch(new double[bytes / sizeof(double) + 1]);
  const neq_parallel threads = torch_threads();
  check(neq_pack_channels_cpu(&source, axis, static_cast<const int32_t*>(index.data_ptr()), &target,
                              bias_data, {scratch.get(), bytes}, &threads),
        kOp);
  return {packed, sums};
}

}  // namespace
}  // namespace neq::python

STABLE_TORCH_LIBRARY(neq_kernels, library) {
  library.def(
      "pack_channels(Tensor dy, Tensor index, int width, int dim, bool bias) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(neq_kernels, CPU, library) {
  library.impl("pack_channels", TORCH_BOX(&neq::python::pack_channels));
}
