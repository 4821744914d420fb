#include "cuda_emulation.h"

#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "block.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace neq::emulation {
namespace {

constexpr size_t kParameterBytes = 32764;
constexpr unsigned kMaxThreads = 1024;

// What lives from launch to launch.
struct Machine {
  std::vector<Device> devices{Device{}};
  Order order = Order::kForward;
  cudaError_t fail_next = cudaSuccess;
  cudaError_t last_error = cudaSuccess;
  int64_t launches = 0;
  std::string problem;
  std::map<const void*, size_t> dynamic_limits;
};
Machine machine;

std::vector<unsigned> in_order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (machine.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (machine.order == Order::kShuffled) {
    std::shuffle(order.begin(), order.end(), std::mt19937(count));
  }
  return order;
}

cudaError_t report(cudaError_t error, std::string problem) {
  machine.problem = std::move(problem);
  return machine.last_error = error;
}

size_t dynamic_limit(const void* kernel) {
  const auto found = machine.dynamic_limits.find(kernel);
  return found == machine.dynamic_limits.end() ? kSharedDefault : found->second;
}

cudaError_t check_launch(const void* kernel, dim3 grid, dim3 size, size_t shared,
                         size_t parameters) {
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > kMaxThreads || size.z > 64) {
    return report(cudaErrorInvalidConfiguration, "block: " + std::to_string(threads) + " threads");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX ||
      grid.z > UINT16_MAX) {
    return report(cudaErrorInvalidConfiguration, "grid: " + std::to_string(grid.x) + " x " +
                                                     std::to_string(grid.y) + " x " +
                                                     std::to_string(grid.z) + " blocks");
  }
  if (shared > dynamic_limit(kernel)) {
    return report(cudaErrorInvalidValue,
                  "dynamic shared memory: " + std::to_string(shared) +
                      " bytes, more than the kernel asked for with cudaFuncSetAttribute");
  }
  if (parameters > kParameterBytes) {
    return report(cudaErrorInvalidValue, "parameters: " + std::to_string(parameters) + " bytes");
  }
  return cudaSuccess;
}

}  // namespace

void set_device(const Device& device) { machine.devices.push_back(device); }
void set_order(Order order) { machine.order = order; }
void fail_next_launch(cudaError_t error) { machine.fail_next = error; }
int64_t launches() { return machine.launches; }
const std::string& problem() { return machine.problem; }

bool same_in_every_order(const std::function<std::vector<uint8_t>()>& run) {
  const Order before = machine.order;
  machine.order = Order::kForward;
  const std::vector<uint8_t> forward = run();
  bool same = true;
  for (const Order order : {Order::kReverse, Order::kShuffled}) {
    machine.order = order;
    same = run() == forward && same;
  }
  machine.order = before;
  return same;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 size, size_t shared, size_t parameters,
                   const std::function<void()>& thread) {
  ++machine.launches;
  if (machine.fail_next != cudaSuccess) {
    return report(std::exchange(machine.fail_next, cudaSuccess), "a failure that was asked for");
  }
  const cudaError_t error = check_launch(kernel, grid, size, shared, parameters);
  if (error != cudaSuccess) return error;
  gridDim = grid;
  blockDim = size;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t b = 0; b < blocks; ++b) {
    const uint64_t at = machine.order == Order::kForward ? b : blocks - 1 - b;
    blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                static_cast<unsigned>(at / grid.x / grid.y)};
    Block now(in_order(size.x * size.y * size.z), shared, dynamic_limit(kernel), thread);
    if (!now.run()) return report(cudaErrorLaunchFailure, now.problem());
  }
  return cudaSuccess;
}

void barrier(Site site) { block->barrier(site); }
const uint64_t* exchange(unsigned mask, uint64_t bits, Site site) {
  return block->exchange(mask, bits, site);
}
void* dynamic_shared() { return block->dynamic(); }
void* static_shared(const void* key, size_t bytes) { return block->shared(key, bytes); }
int lane() { return block->lane(); }

}  // namespace neq::emulation

using neq::emulation::machine;

cudaError_t cudaGetDevice(int* device) {
  *device = static_cast<int>(machine.devices.size()) - 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || static_cast<size_t>(device) >= machine.devices.size()) {
    return machine.last_error = cudaErrorInvalidDevice;
  }
  const neq::emulation::Device& asked = machine.devices[device];
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = asked.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = asked.threads_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = asked.shared_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = asked.shared_per_block_optin;
      return cudaSuccess;
  }
  return machine.last_error = cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > machine.devices.back().shared_per_block_optin) {
    return machine.last_error = cudaErrorInvalidValue;
  }
  machine.dynamic_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(machine.last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unrecognized error code";
}
