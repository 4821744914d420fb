#include "row_step.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "status.h"
#include "tensor.h"

namespace neq::rows {
namespace {

constexpr const char* kNames[NEQ_ROW_TENSORS] = {"parameter", "gradient", "state 1", "state 2",
                                                 "state 3"};

long long wide(int64_t value) { return static_cast<long long>(value); }

bool finite(double value) { return std::isfinite(value); }

int64_t elements_of(const neq_tensor& tensor) noexcept {
  int64_t elements = 1;
  for (int32_t d = 0; d < tensor.ndim; ++d) elements *= tensor.size[d];
  return elements;
}

neq_status check_named(const char* name, int tensor, const neq_row_parameter& parameter) noexcept {
  const neq_tensor& first = parameter.tensor[0];
  const neq_tensor& view = parameter.tensor[tensor];
  neq_status status = check_tensor(name, &view);
  if (status == NEQ_OK && tensor != 1) status = check_own_memory(name, view);
  if (status != NEQ_OK) return status;
  if (view.dtype != first.dtype || view.ndim != first.ndim ||
      !std::equal(view.size, view.size + view.ndim, first.size)) {
    return fail(NEQ_INVALID_ARGUMENT,
                "%s: expected the parameter's dtype %d and shape in %d dimensions, got dtype %d "
                "and another shape or %d dimensions",
                name, first.dtype, first.ndim, view.dtype, view.ndim);
  }
  return NEQ_OK;
}

neq_status check_rows(const neq_row_parameter& parameter, int64_t position) noexcept {
  if (parameter.count == -1) return NEQ_OK;
  const neq_tensor& first = parameter.tensor[0];
  if (parameter.dim < 0 || parameter.dim >= first.ndim) {
    return fail(NEQ_INVALID_ARGUMENT,
                "parameter %lld, dim: expected one of its %d dimensions, got %d", wide(position),
                first.ndim, parameter.dim);
  }
  const int64_t neurons = first.size[parameter.dim];
  if (parameter.count < -1 || parameter.count > std::min<int64_t>(neurons, INT32_MAX)) {
    return fail(NEQ_INVALID_ARGUMENT,
                "parameter %lld, count: expected -1 or up to its %lld neurons, got %lld",
                wide(position), wide(neurons), wide(parameter.count));
  }
  if (parameter.count > 0 && !parameter.index) {
    return fail(NEQ_INVALID_ARGUMENT,
                "parameter %lld, index: expected %lld neurons, got a null pointer", wide(position),
                wide(parameter.count));
  }
  return NEQ_OK;
}

neq_status check_one(const neq_row_parameter& parameter, int64_t position,
                     Formula formula) noexcept {
  for (int tensor = 0; tensor < tensors_of(formula); ++tensor) {
    if (check_named(kNames[tensor], tensor, parameter) == NEQ_OK) continue;
    char name[64];
    std::snprintf(name, sizeof name, "parameter %lld, %s", wide(position), kNames[tensor]);
    return check_named(name, tensor, parameter);
  }
  if (formula >= Formula::kAdam && !(parameter.step >= 1)) {
    return fail(NEQ_INVALID_ARGUMENT, "parameter %lld, step: expected 1 or more, got %g",
                wide(position), parameter.step);
  }
  return check_rows(parameter, position);
}

struct Dim {
  int64_t size;
  int64_t stride;
};

// A tensor's dimensions but `without`, outermost first, as few as the strides allow.
int collapse(const neq_tensor& tensor, int32_t without, Dim* dims) noexcept {
  int found = 0;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    if (d == without || tensor.size[d] == 1) continue;
    int place = found++;
    for (; place > 0 && dims[place - 1].stride < tensor.stride[d]; --place) {
      dims[place] = dims[place - 1];
    }
    dims[place] = {tensor.size[d], tensor.stride[d]};
  }
  int kept = 0;
  for (int d = 0; d < found; ++d) {
    Dim* outer = kept ? &dims[kept - 1] : nullptr;
    if (outer && outer->stride == dims[d].stride * dims[d].size) {
      *outer = {outer->size * dims[d].size, dims[d].stride};
    } else {
      dims[kept++] = dims[d];
    }
  }
  return kept;
}

bool same_strides(const neq_row_parameter& parameter, Formula formula) noexcept {
  const neq_tensor& first = parameter.tensor[0];
  for (int tensor = 1; tensor < tensors_of(formula); ++tensor) {
    for (int32_t d = 0; d < first.ndim; ++d) {
      const bool matters = first.size[d] > 1;
      if (matters && parameter.tensor[tensor].stride[d] != first.stride[d]) return false;
    }
  }
  return true;
}

}  // namespace

Formula formula_of(const neq_sgd& options) noexcept {
  return options.momentum != 0 ? Formula::kSgdMomentum : Formula::kSgd;
}

Formula formula_of(const neq_adamw& options) noexcept {
  return options.amsgrad ? Formula::kAmsgrad : Formula::kAdam;
}

Numbers numbers_of(const neq_sgd& options, const neq_row_parameter&) noexcept {
  Numbers numbers{};
  numbers.sign = options.maximize ? -1 : 1;
  numbers.decay = options.weight_decay;
  numbers.momentum = options.momentum;
  numbers.fresh = 1 - options.dampening;
  numbers.nesterov = options.nesterov ? options.momentum : 0;
  numbers.rate = options.lr;
  return numbers;
}

Numbers numbers_of(const neq_adamw& options, const neq_row_parameter& parameter) noexcept {
  Numbers numbers{};
  numbers.sign = options.maximize ? -1 : 1;
  numbers.decay = options.decoupled ? 0 : options.weight_decay;
  numbers.keep = options.decoupled ? 1 - options.lr * options.weight_decay : 1;
  numbers.fresh = 1 - options.beta1;
  numbers.second = options.beta2;
  numbers.fresh_second = 1 - options.beta2;
  numbers.root = 1 / std::sqrt(1 - std::pow(options.beta2, parameter.step));
  numbers.eps = options.eps;
  numbers.rate = options.lr / (1 - std::pow(options.beta1, parameter.step));
  return numbers;
}

neq_status check(const neq_sgd* options) noexcept {
  if (!options) return fail(NEQ_INVALID_ARGUMENT, "options: expected some, got a null pointer");
  const double values[] = {options->lr, options->momentum, options->dampening,
                           options->weight_decay};
  if (!std::all_of(values, values + 4, finite)) {
    return fail(NEQ_INVALID_ARGUMENT,
                "options: expected finite numbers, got lr %g, momentum %g, dampening %g, "
                "weight_decay %g",
                values[0], values[1], values[2], values[3]);
  }
  return NEQ_OK;
}

neq_status check(const neq_adamw* options) noexcept {
  if (!options) return fail(NEQ_INVALID_ARGUMENT, "options: expected some, got a null pointer");
  const double betas[] = {options->beta1, options->beta2};
  if (!std::all_of(betas, betas + 2, [](double beta) { return beta >= 0 && beta < 1; })) {
    return fail(NEQ_INVALID_ARGUMENT, "options: expected betas in [0, 1), got %g and %g", betas[0],
                betas[1]);
  }
  const double values[] = {options->lr, options->eps, options->weight_decay};
  if (!std::all_of(values, values + 3, finite)) {
    return fail(NEQ_INVALID_ARGUMENT,
                "options: expected finite numbers, got lr %g, eps %g, weight_decay %g", values[0],
                values[1], values[2]);
  }
  return NEQ_OK;
}

neq_status check(const neq_row_parameter* parameters, int64_t count, Formula formula) noexcept {
  if (count < 0 || count > INT32_MAX || (count > 0 && !parameters)) {
    return fail(NEQ_INVALID_ARGUMENT, "parameters: expected 0 to %d of them, got %lld%s", INT32_MAX,
                wide(count), parameters ? "" : " at a null pointer");
  }
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const neq_status status = check_one(parameters[i], i, formula);
    if (status != NEQ_OK) return status;
    if (__builtin_add_overflow(total, elements_of(parameters[i].tensor[0]), &total)) {
      return fail(NEQ_INVALID_ARGUMENT, "parameters: expected fewer than 2^63 elements, got more");
    }
  }
  return NEQ_OK;
}

neq_status check_index(const neq_row_parameter& parameter, int64_t position) noexcept {
  const int32_t* index = parameter.index;
  const int64_t neurons = parameter.count > 0 ? parameter.tensor[0].size[parameter.dim] : 0;
  int64_t before = -1;
  for (int64_t i = 0; i < parameter.count; ++i) {
    if (index[i] <= before || index[i] >= neurons) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "parameter %lld, index: expected rising neurons in [0, %lld), got %d in place "
                  "%lld; sort it, once each",
                  wide(position), wide(neurons), index[i], wide(i));
    }
    before = index[i];
  }
  return NEQ_OK;
}

Layout understand(const neq_row_parameter& parameter, Formula formula) noexcept {
  const neq_tensor& tensor = parameter.tensor[0];
  const bool all = parameter.count < 0;
  const int64_t elements = elements_of(tensor);
  Layout layout{Walk::kStrided, all, 0, 0, 0};
  if (elements == 0 || parameter.count == 0) return layout;
  const int64_t neurons = all ? 1 : tensor.size[parameter.dim];
  layout.rows = all ? 1 : parameter.count;
  layout.run = elements / neurons;
  if (!same_strides(parameter, formula)) return layout;

  Dim dims[NEQ_MAX_DIMS];
  const int found = collapse(tensor, all ? -1 : parameter.dim, dims);
  const int64_t step = all ? 0 : tensor.stride[parameter.dim];
  if (found == 1 && dims[0].stride == 1) {
    layout.walk = Walk::kRows;
    layout.stride = step;
  } else if (!all && found <= 1 && (step == 1 || neurons == 1)) {
    layout.walk = Walk::kColumns;
    layout.stride = found ? dims[0].stride : 0;
  } else if (found == 0) {
    layout.walk = Walk::kRows;
    layout.stride = step;
  }
  return layout;
}

}  // namespace neq::rows
