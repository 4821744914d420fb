// Between torch's tensors and the core's: views, the thread pool, and statuses as exceptions.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "neq/neq.h"

namespace neq::python {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(neq_status status, const char* op) {
  if (status != NEQ_OK) throw std::runtime_error(std::string(op) + ": " + neq_last_error());
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(tensor.size(d));
  }
  return text + "]";
}

inline neq_dtype dtype_of(const Tensor& tensor, const char* op, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return NEQ_F32;
    case ScalarType::Double:
      return NEQ_F64;
    case ScalarType::Half:
      return NEQ_F16;
    case ScalarType::BFloat16:
      return NEQ_BF16;
    default:
      throw std::runtime_error(std::string(op) + ": " + name +
                               ": expected float32, float64, float16 or bfloat16, got " +
                               torch::headeronly::toString(tensor.scalar_type()) +
                               "; cast it, or use the torch backend");
  }
}

inline neq_tensor view(const Tensor& tensor, const char* op, const char* name) {
  // All sizes at once: asking for each one costs as much, and there are many in a list of tensors.
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  if (sizes.empty() || sizes.size() > NEQ_MAX_DIMS) {
    throw std::runtime_error(std::string(op) + ": " + name + ": expected 1 to " +
                             std::to_string(NEQ_MAX_DIMS) + " dimensions, got shape " +
                             shape_of(tensor) + "; view it with fewer");
  }
  const auto dims = static_cast<int32_t>(sizes.size());
  neq_tensor view{tensor.data_ptr(), dtype_of(tensor, op, name), dims, {}, {}};
  std::copy(sizes.begin(), sizes.end(), view.size);
  std::copy(strides.begin(), strides.end(), view.stride);
  return view;
}

// A contiguous tensor on the device of `like`, of its dtype unless another is asked for. By the C
// function for it: torch::stable's looks its operator up by name, half a microsecond each time.
inline Tensor uninitialized(const Tensor& like, const std::vector<int64_t>& sizes,
                            std::optional<ScalarType> dtype = std::nullopt) {
  int32_t device_type = 0;
  int32_t device_index = 0;
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(like.get(), &layout));
  const ScalarType scalar_type = dtype.value_or(like.scalar_type());
  auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(scalar_type));
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_aten_new_empty(like.get(), sizes.data(), static_cast<int64_t>(sizes.size()), &type,
                                &layout, &device_type, device_index, nullptr, &tensor));
  return Tensor(tensor);
}

// A gradient in the weight's own sizes and strides, of dy's type and device.
template <class Sizes>
Tensor gradient_of(const Tensor& dy, const Sizes& sizes, const Sizes& strides) {
  int32_t device_type = 0;
  int32_t device_index = 0;
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(dy.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(dy.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(dy.get(), &dtype));
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), dtype,
                                                         device_type, device_index, &tensor));
  return Tensor(tensor);
}

// An operator's list of active channels, of which `width` places are read, beside `tensor`.
inline void check_index(const Tensor& index, int64_t width, const Tensor& tensor, const char* op) {
  const bool beside = index.device() == tensor.device() || (index.is_cpu() && tensor.is_cpu());
  const bool right = index.scalar_type() == ScalarType::Int && index.dim() == 1 && beside;
  if (!right || width < 0 || index.size(0) < width || (width > 1 && index.stride(0) != 1)) {
    throw std::runtime_error(
        std::string(op) +
        ": index: expected a contiguous int32 list on dy's device, at least width=" +
        std::to_string(width) + " long (width >= 0), got " +
        torch::headeronly::toString(index.scalar_type()) + " " + shape_of(index) +
        (beside ? "" : " on another device") + "; pass ActiveSet's own index");
  }
}

// `dim` counted from the front.
inline int32_t checked_dim(int64_t dim, const Tensor& tensor, const char* op, const char* name) {
  const int64_t dims = tensor.dim();
  if (dim < -dims || dim >= dims) {
    throw std::runtime_error(std::string(op) + ": dim: expected " + std::to_string(-dims) + " to " +
                             std::to_string(dims - 1) + ", a dimension of " + name +
                             " with shape " + shape_of(tensor) + ", got " + std::to_string(dim));
  }
  return static_cast<int32_t>(dim < 0 ? dim + dims : dim);
}

// torch's own thread pool, so that torch.set_num_threads holds here too.
inline neq_parallel torch_threads() {
  const auto run = [](void*, int64_t begin, int64_t end, int64_t grain, neq_body body, void* arg) {
    torch::stable::parallel_for(begin, end, grain,
                                [=](int64_t from, int64_t to) { body(arg, from, to); });
  };
  return {run, nullptr};
}

}  // namespace neq::python
