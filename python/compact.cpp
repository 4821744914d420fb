// compact for torch: allocates the lists of all layers as one tensor and calls the core.
#include <stdexcept>
#include <string>
#include <vector>

#include "on_cuda.h"
#include "operators.h"
#include "tensor.h"

namespace neq::python {
namespace {

constexpr const char* kOp = "compact";

int32_t kind_of(const Tensor& layer) {
  switch (layer.scalar_type()) {
    case ScalarType::Bool:
      return NEQ_MASK;
    case ScalarType::Float:
      return NEQ_VELOCITY_F32;
    case ScalarType::Double:
      return NEQ_VELOCITY_F64;
    default:
      throw std::runtime_error(
          std::string(kOp) +
          ": layers: expected bool masks, or velocities in float32 or float64, got " +
          torch::headeronly::toString(layer.scalar_type()) + "; cast them");
  }
}

void check_layer(const Tensor& layer, const Tensor& first, size_t place) {
  if (layer.dim() == 1 && (layer.size(0) < 2 || layer.stride(0) == 1) &&
      layer.scalar_type() == first.scalar_type() && layer.device() == first.device()) {
    return;
  }
  throw std::runtime_error(
      std::string(kOp) + ": layers: expected one dimension, contiguous, of the first one's dtype " +
      torch::headeronly::toString(first.scalar_type()) + " and on its device, got " +
      torch::headeronly::toString(layer.scalar_type()) + " " + shape_of(layer) + " in place " +
      std::to_string(place) + "; call compact once per device");
}

}  // namespace

Tensor compact(const std::vector<Tensor>& layers, double epsilon) {
  if (layers.empty()) {
    throw std::runtime_error(std::string(kOp) + ": layers: expected at least one, got none");
  }
  const Tensor& first = layers.front();
  const int32_t kind = kind_of(first);
  std::vector<neq_choice> choices;
  int64_t total = static_cast<int64_t>(layers.size());
  for (const Tensor& layer : layers) {
    check_layer(layer, first, choices.size());
    choices.push_back({layer.data_ptr(), layer.size(0)});
    total += layer.size(0);
  }
  const Tensor lists = uninitialized(first, {total}, ScalarType::Int);
  const auto count = static_cast<int64_t>(choices.size());
  auto* const data = static_cast<int32_t*>(lists.data_ptr());
#ifdef NEQ_WITH_CUDA
  if (first.is_cuda()) {
    const OnCuda here(first, kOp);
    check(neq_compact_cuda(choices.data(), count, kind, epsilon, data, here.stream()), kOp);
    return lists;
  }
#endif
  check(neq_compact_cpu(choices.data(), count, kind, epsilon, data), kOp);
  return lists;
}

}  // namespace neq::python
