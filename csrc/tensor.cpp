#include "tensor.h"

#include <algorithm>

#include "status.h"

namespace neq {
namespace {

neq_status check_sizes(const char* name, const neq_tensor& tensor, int64_t* count) noexcept {
  int64_t end = 0;  // every stride is counted, also that of a single element: kernels multiply it
  const int64_t element = element_bytes(tensor.dtype);
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    const int64_t size = tensor.size[d];
    const int64_t stride = tensor.stride[d];
    if (size < 0 || stride < 0) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "%s: expected sizes and strides of at least 0, got size %lld and stride %lld in "
                  "dimension %d",
                  name, static_cast<long long>(size), static_cast<long long>(stride), d);
    }
    int64_t span = 0;
    int64_t bytes = 0;
    if (__builtin_mul_overflow(*count, size, count) ||
        __builtin_mul_overflow(*count, element, &bytes) ||
        __builtin_mul_overflow(std::max<int64_t>(size, 1), stride, &span) ||
        __builtin_add_overflow(end, span, &end) || __builtin_mul_overflow(end, element, &bytes)) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "%s: expected offsets that fit 64 bits, dimension %d does not", name, d);
    }
  }
  return NEQ_OK;
}

}  // namespace

neq_status check_tensor(const char* name, const neq_tensor* tensor) noexcept {
  if (!tensor) return fail(NEQ_INVALID_ARGUMENT, "%s: expected a tensor, got a null pointer", name);
  if (tensor->dtype < NEQ_F32 || tensor->dtype > NEQ_BF16) {
    return fail(NEQ_UNSUPPORTED, "%s: expected dtype f32, f64, f16 or bf16, got code %d", name,
                tensor->dtype);
  }
  if (tensor->ndim < 1 || tensor->ndim > NEQ_MAX_DIMS) {
    return fail(NEQ_UNSUPPORTED, "%s: expected 1 to %d dimensions, got %d; view it with fewer",
                name, NEQ_MAX_DIMS, tensor->ndim);
  }
  int64_t count = 1;
  const neq_status status = check_sizes(name, *tensor, &count);
  if (status != NEQ_OK) return status;
  if (count > 0 && !tensor->data) {
    return fail(NEQ_INVALID_ARGUMENT, "%s: expected data, got a null pointer", name);
  }
  return NEQ_OK;
}

neq_status check_own_memory(const char* name, const neq_tensor& tensor) noexcept {
  const int64_t* end = tensor.size + tensor.ndim;
  if (std::find(tensor.size, end, 0) != end) return NEQ_OK;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    if (tensor.size[d] > 1 && tensor.stride[d] == 0) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "%s: expected memory of its own for every element, got stride 0 in dimension %d; "
                  "allocate it in full",
                  name, d);
    }
  }
  return NEQ_OK;
}

neq_status check_scratch(neq_scratch scratch, int64_t bytes) noexcept {
  if (scratch.bytes < bytes || (bytes > 0 && !scratch.data)) {
    return fail(NEQ_INVALID_ARGUMENT, "scratch: expected %lld bytes, got %lld%s",
                static_cast<long long>(bytes), static_cast<long long>(scratch.bytes),
                scratch.data ? "" : " and a null pointer");
  }
  if (reinterpret_cast<uintptr_t>(scratch.data) % alignof(double) != 0) {
    return fail(NEQ_INVALID_ARGUMENT, "scratch: expected an address aligned to 8, got %p",
                scratch.data);
  }
  return NEQ_OK;
}

char* end_of(const neq_tensor& tensor) noexcept {
  int64_t last = 0;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    if (tensor.size[d] == 0) return static_cast<char*>(tensor.data);
    last += (tensor.size[d] - 1) * tensor.stride[d];
  }
  return static_cast<char*>(tensor.data) + (last + 1) * element_bytes(tensor.dtype);
}

}  // namespace neq
