// What row_sgd and row_adamw share: lists of tensors as the core's parameters.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tensor.h"

namespace neq::python {

// The active rows of each parameter: count[i] of them, -1 for all, listed in index[i].
struct Rows {
  const std::vector<Tensor>& index;
  const std::vector<int64_t>& count;
  const std::vector<int64_t>& dim;
};

using Named = std::pair<const char*, const std::vector<Tensor>*>;

// The device of a list's tensors: asked of each one, so by the two C functions that say it.
struct Place {
  int32_t type;
  int32_t index;
};

inline Place place_of(const Tensor& tensor) {
  Place place{};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &place.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &place.index));
  return place;
}

// A CPU has one memory, with or without a number.
inline bool operator==(const Place& a, const Place& b) {
  return a.type == b.type && (a.index == b.index || a.type == aoti_torch_device_type_cpu());
}

inline neq_tensor view_of_any_rank(const Tensor& tensor, const char* op, const char* name) {
  if (tensor.dim() > 0) return view(tensor, op, name);
  return {tensor.data_ptr(), dtype_of(tensor, op, name), 1, {1}, {1}};
}

inline void check_length(size_t length, size_t expected, const char* op, const char* name) {
  if (length != expected) {
    throw std::runtime_error(std::string(op) + ": " + name + ": expected " +
                             std::to_string(expected) + ", one per parameter, got " +
                             std::to_string(length));
  }
}

// tensors[0] are the parameters. What an index holds is the core's to check.
inline std::vector<neq_row_parameter> parameters_of(const std::vector<Named>& tensors,
                                                    const Rows& rows, const char* op) {
  const std::vector<Tensor>& first = *tensors[0].second;
  const size_t n = first.size();
  for (const auto& [name, list] : tensors) check_length(list->size(), n, op, name);
  check_length(rows.index.size(), n, op, "index");
  check_length(rows.count.size(), n, op, "count");
  check_length(rows.dim.size(), n, op, "dim");
  std::vector<neq_row_parameter> parameters(n);
  const Place place = n > 0 ? place_of(first[0]) : Place{};
  for (size_t i = 0; i < n; ++i) {
    neq_row_parameter& parameter = parameters[i];
    for (size_t t = 0; t < tensors.size(); ++t) {
      const auto& [name, list] = tensors[t];
      if (!(place_of((*list)[i]) == place)) {
        throw std::runtime_error(std::string(op) + ": " + name +
                                 ": expected all on the first parameter's device, got another one "
                                 "at place " +
                                 std::to_string(i) + "; call it once per device");
      }
      parameter.tensor[t] = view_of_any_rank((*list)[i], op, name);
    }
    parameter.count = rows.count[i];
    if (parameter.count < 0) continue;
    check_index(rows.index[i], parameter.count, first[0], op);
    parameter.index = static_cast<const int32_t*>(rows.index[i].data_ptr());
    parameter.dim = static_cast<int32_t>(rows.dim[i]);
  }
  return parameters;
}

}  // namespace neq::python
