#include "convolution.h"

#include <algorithm>

#include "status.h"
#include "tensor.h"

namespace neq {
namespace {

constexpr int64_t kMaxTaps = 1 << 24;

long long number(int64_t value) noexcept { return static_cast<long long>(value); }

// What the caller calls the two tensors beside dy.
struct Names {
  const char* x;
  const char* dw;

  static Names of(Groups groups) noexcept {
    return groups == Groups::kInput ? Names{"dx", "weight"} : Names{"x", "dw"};
  }
};

neq_status check_window(const neq_window& window, int32_t dims) noexcept {
  for (int32_t d = 0; d < dims; ++d) {
    const int64_t most = std::max({window.stride[d], window.dilation[d], window.padding[d]});
    if (window.stride[d] < 1 || window.dilation[d] < 1 || window.padding[d] < 0 ||
        most > INT32_MAX) {
      return fail(
          NEQ_INVALID_ARGUMENT,
          "window: expected stride and dilation of at least 1, padding of at least 0 and "
          "all below 2^31, got stride %lld, dilation %lld and padding %lld in spatial dimension %d",
          number(window.stride[d]), number(window.dilation[d]), number(window.padding[d]), d);
    }
  }
  return NEQ_OK;
}

neq_status check_kinds(const neq_tensor& dy, const neq_tensor& x, const neq_tensor& dw,
                       const Names& names) noexcept {
  if (dy.ndim != 3 && dy.ndim != 4) {
    return fail(NEQ_UNSUPPORTED,
                "dy: expected [N, O, length] or [N, O, height, width], got %d dimensions", dy.ndim);
  }
  const struct {
    const char* name;
    const neq_tensor& tensor;
  } others[] = {{names.x, x}, {names.dw, dw}};
  for (const auto& [name, tensor] : others) {
    if (tensor.dtype != dy.dtype || tensor.ndim != dy.ndim) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "%s: expected dy's dtype %d and %d dimensions, got dtype %d and %d dimensions",
                  name, dy.dtype, dy.ndim, tensor.dtype, tensor.ndim);
    }
  }
  return NEQ_OK;
}

neq_status check_rows(const neq_tensor& dw, int64_t rows, int64_t inputs,
                      const Names& names) noexcept {
  if (dw.size[0] == rows && dw.size[1] == inputs) return NEQ_OK;
  return fail(NEQ_INVALID_ARGUMENT, "%s: expected shape [%lld, %lld, ...], got [%lld, %lld, ...]",
              names.dw, number(rows), number(inputs), number(dw.size[0]), number(dw.size[1]));
}

neq_status check_channels(const neq_tensor& dy, const neq_tensor& x, const neq_tensor& dw,
                          int64_t width, Groups groups) noexcept {
  const Names names = Names::of(groups);
  const int64_t outputs = dy.size[1];
  const int64_t inputs = x.size[1];
  if (outputs > INT32_MAX) {
    return fail(NEQ_UNSUPPORTED, "dy: expected at most %d channels, got %lld", INT32_MAX,
                number(outputs));
  }
  if (x.size[0] != dy.size[0]) {
    return fail(NEQ_INVALID_ARGUMENT, "%s: expected dy's batch of %lld, got %lld", names.x,
                number(dy.size[0]), number(x.size[0]));
  }
  if (width < 0 || width > outputs) {
    return fail(NEQ_INVALID_ARGUMENT, "width: expected 0 to %lld, the channels of dy, got %lld",
                number(outputs), number(width));
  }
  if (groups != Groups::kDepthwise) return check_rows(dw, outputs, inputs, names);
  if (inputs == 0 ? outputs != 0 : outputs % inputs != 0) {
    return fail(NEQ_INVALID_ARGUMENT,
                "x: expected channels that divide dy's %lld, got %lld; other groups are not "
                "depthwise",
                number(outputs), number(inputs));
  }
  return check_rows(dw, outputs, 1, names);
}

// Whether dy has the size this axis gives; its reach fits 64 bits then.
neq_status check_axis(const Axis& axis, int32_t d, const Names& names) noexcept {
  int64_t reach = 0;
  int64_t padded = 0;
  const bool fits = !__builtin_mul_overflow(axis.kernel - 1, axis.dilation, &reach) &&
                    !__builtin_mul_overflow(axis.padding, int64_t{2}, &padded) &&
                    !__builtin_add_overflow(padded, axis.in, &padded) &&
                    !__builtin_add_overflow(padded, axis.stride, &padded);
  if (axis.kernel < 1 || !fits) {
    return fail(NEQ_INVALID_ARGUMENT,
                "%s: expected a kernel size of at least 1, its reach within 64 bits, got %lld in "
                "spatial dimension %d",
                names.dw, number(axis.kernel), d);
  }
  const int64_t room = padded - axis.stride - reach - 1;
  const int64_t out = room < 0 ? 0 : room / axis.stride + 1;
  if (axis.out == out) return NEQ_OK;
  return fail(
      NEQ_INVALID_ARGUMENT,
      "dy: expected size %lld in spatial dimension %d, which %s's %lld and the window give, "
      "got %lld",
      number(out), d, names.x, number(axis.in), number(axis.out));
}

// The way from one output's input to the next one's, of which there may be none in x.
neq_status check_step(const Axis& axis, int64_t stride, int64_t element, int32_t d,
                      const Names& names) noexcept {
  int64_t step = 0;
  if (!__builtin_mul_overflow(axis.stride, stride, &step) &&
      !__builtin_mul_overflow(step, element, &step)) {
    return NEQ_OK;
  }
  return fail(NEQ_INVALID_ARGUMENT,
              "window: expected strides whose steps through %s fit 64 bits, got %lld in spatial "
              "dimension %d",
              names.x, number(axis.stride), d);
}

Strides strides(const neq_tensor& tensor) noexcept {
  if (tensor.ndim == 3) return {tensor.stride[0], tensor.stride[1], {0, tensor.stride[2]}};
  return {tensor.stride[0], tensor.stride[1], {tensor.stride[2], tensor.stride[3]}};
}

}  // namespace

neq_status understand(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                      const neq_window* window, const neq_tensor* dw, Groups groups,
                      Convolution* convolution) noexcept {
  const Names names = Names::of(groups);
  neq_status status = check_tensor("dy", dy);
  if (status == NEQ_OK) status = check_tensor(names.x, x);
  if (status == NEQ_OK) status = check_tensor(names.dw, dw);
  if (status == NEQ_OK && !window) {
    status = fail(NEQ_INVALID_ARGUMENT, "window: expected strides, got a null pointer");
  }
  if (status == NEQ_OK) status = check_kinds(*dy, *x, *dw, names);
  if (status == NEQ_OK) status = check_window(*window, dy->ndim - 2);
  if (status == NEQ_OK) status = check_channels(*dy, *x, *dw, width, groups);
  if (status == NEQ_OK) {
    status =
        groups == Groups::kInput ? check_own_memory(names.x, *x) : check_own_memory(names.dw, *dw);
  }
  if (status != NEQ_OK) return status;

  const int64_t outputs = dy->size[1];
  const int64_t inputs = x->size[1];
  const int64_t multiplier = inputs && groups == Groups::kDepthwise ? outputs / inputs : 1;
  *convolution = {static_cast<neq_dtype>(dy->dtype),
                  dy->size[0],
                  outputs,
                  inputs,
                  multiplier ? multiplier : 1,
                  {{1, 1, 1, 1, 0, 1}, {1, 1, 1, 1, 0, 1}},
                  strides(*dy),
                  strides(*x),
                  strides(*dw)};
  const int32_t dims = dy->ndim - 2;
  for (int32_t d = 0; d < dims; ++d) {
    Axis& axis = convolution->axis[2 - dims + d];
    axis = {dy->size[2 + d],   x->size[2 + d],     dw->size[2 + d],
            window->stride[d], window->padding[d], window->dilation[d]};
    status = check_axis(axis, d, names);
    if (status == NEQ_OK) {
      status = check_step(axis, x->stride[2 + d], element_bytes(x->dtype), d, names);
    }
    if (status != NEQ_OK) return status;
  }
  const Axis& tall = convolution->axis[0];
  const Axis& wide = convolution->axis[1];
  if (tall.kernel > kMaxTaps / wide.kernel) {
    return fail(NEQ_UNSUPPORTED, "%s: expected kernels of at most %lld weights, got %lld x %lld",
                names.dw, number(kMaxTaps), number(tall.kernel), number(wide.kernel));
  }
  return NEQ_OK;
}

}  // namespace neq
