// What the launchers ask of the driver, once per device and process.
#include <atomic>

#include "cuda/common.cuh"

namespace neq::cuda {
namespace {

constexpr int kDevices = 64;
constexpr cudaDeviceAttr kAttributes[] = {
    cudaDevAttrMultiProcessorCount, cudaDevAttrMaxThreadsPerMultiProcessor,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor, cudaDevAttrMaxSharedMemoryPerBlockOptin};
constexpr int kCount = sizeof kAttributes / sizeof *kAttributes;

// Zero while unknown; whoever comes first writes what all others would.
std::atomic<int> known[kDevices][kCount];

}  // namespace

neq_status current_device(Device* device) {
  int ordinal = 0;
  if (const neq_status status = check(cudaGetDevice(&ordinal), "current device")) return status;
  int values[kCount];
  for (int a = 0; a < kCount; ++a) {
    std::atomic<int>* const cached = ordinal < kDevices ? &known[ordinal][a] : nullptr;
    values[a] = cached ? cached->load(std::memory_order_relaxed) : 0;
    if (values[a]) continue;
    const cudaError_t error = cudaDeviceGetAttribute(&values[a], kAttributes[a], ordinal);
    if (error != cudaSuccess) return check(error, "device attribute");
    if (cached) cached->store(values[a], std::memory_order_relaxed);
  }
  *device = {values[0], values[1], values[2], values[3]};
  return NEQ_OK;
}

}  // namespace neq::cuda
