#include "compact.h"

#include "status.h"

namespace neq::compact {

neq_status check(const neq_choice* layers, int64_t count, int32_t kind, double epsilon,
                 const int32_t* lists) noexcept {
  if (count < 0 || (count > 0 && !layers)) {
    return fail(NEQ_INVALID_ARGUMENT, "layers: expected at least 0 of them, got %lld%s",
                static_cast<long long>(count), layers ? "" : " and a null pointer");
  }
  if (kind < NEQ_MASK || kind > NEQ_VELOCITY_F64) {
    return fail(NEQ_UNSUPPORTED, "kind: expected masks or velocities in f32 or f64, got code %d",
                kind);
  }
  if (kind != NEQ_MASK && !(epsilon >= 0)) {
    return fail(NEQ_INVALID_ARGUMENT, "epsilon: expected a number >= 0, got %g", epsilon);
  }
  int64_t total = count;
  for (int64_t l = 0; l < count; ++l) {
    const neq_choice& layer = layers[l];
    if (layer.size < 0 || layer.size > INT32_MAX) {
      return fail(NEQ_INVALID_ARGUMENT, "layers: expected 0 to %d channels, got %lld in layer %lld",
                  INT32_MAX, static_cast<long long>(layer.size), static_cast<long long>(l));
    }
    if (layer.size > 0 && !layer.data) {
      return fail(NEQ_INVALID_ARGUMENT, "layers: expected data, got a null pointer in layer %lld",
                  static_cast<long long>(l));
    }
    if (__builtin_add_overflow(total, layer.size, &total) || total > INT64_MAX / 4) {
      return fail(NEQ_INVALID_ARGUMENT, "layers: expected channels that fit 64 bits together");
    }
  }
  if (total > 0 && !lists) {
    return fail(NEQ_INVALID_ARGUMENT, "lists: expected memory, got a null pointer");
  }
  return NEQ_OK;
}

}  // namespace neq::compact
