// The loops of row_sgd and row_adamw for any processor.
#define NEQ_TARGET
#define NEQ_INLINE [[gnu::always_inline]] inline

#include "element.h"
#include "row_step_loops.h"

namespace neq::rows {
namespace {

// A vector of one element.
template <class Of>
struct Single {
  using Scalar = Of;
  using Storage = typename Scalar::Storage;
  using Vector = typename Scalar::Sum;
  static constexpr int64_t kLanes = 1;
  NEQ_INLINE static Vector load(const Storage* source) { return Scalar::load(*source); }
  NEQ_INLINE static void store(Storage* target, Vector value) { *target = Scalar::store(value); }
  NEQ_INLINE static void store_lanes(Storage* target, Vector value, uint32_t) {
    store(target, value);
  }
};

}  // namespace

const Kernels& scalar_kernels(Formula formula, neq_dtype dtype) noexcept {
  return table_of<Single<Float>, Single<Double>, Single<Half>, Single<BFloat16>>(formula, dtype);
}

}  // namespace neq::rows
