// What compact asks of its arguments, on whichever device.
#pragma once

#include <cstdint>

#include "neq/neq.h"

#if defined(__CUDACC__)
#define NEQ_HOST_DEVICE __host__ __device__
#else
#define NEQ_HOST_DEVICE
#endif

namespace neq::compact {

// Whether a neuron with this velocity trains on: the one definition, NaN is frozen; compared
// in the velocity's own type, as the torch specification does (neq_kernels/reference.py).
template <class T>
NEQ_HOST_DEVICE inline bool moves(T velocity, double epsilon) noexcept {
  return (velocity < 0 ? -velocity : velocity) >= static_cast<T>(epsilon);
}

neq_status check(const neq_choice* layers, int64_t count, int32_t kind, double epsilon,
                 const int32_t* lists) noexcept;

}  // namespace neq::compact
