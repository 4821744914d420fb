// A CUDA device in plain C++: what csrc/cuda/common.cuh includes under NEQ_EMULATE in place of the
// CUDA runtime, so that the kernels' own sources run under the host compiler's sanitizers.
//
// The threads of a block are fibers of one host thread. One runs until it meets a barrier or a warp
// operation or ends; blocks run one after another. The order of both can be turned round or
// shuffled: a kernel that lacks a barrier then gives another result (see same_in_every_order).
// Shared memory is fresh for every block, holds NaN, and ends where it says it ends. A barrier
// that not every thread of the block reaches, a warp operation that not every named lane reaches, a
// launch beyond the device's limits: all fail the launch, and problem() says why.
//
// Only what the kernels use is here, under CUDA's own names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/element.h"

#define __global__
#define __device__
#define __host__
#define __restrict__ __restrict
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Set before a fiber runs on.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
inline constexpr int warpSize = 32;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = void*;

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace neq::emulation {

// ---- For tests: which device, which order, what happened.

struct Device {
  int multiprocessors = 4;
  int threads_per_multiprocessor = 2048;
  int shared_per_multiprocessor = 228 << 10;
  int shared_per_block_optin = 227 << 10;
};

enum class Order { kForward, kReverse, kShuffled };
inline constexpr Order kOrders[] = {Order::kForward, Order::kReverse, Order::kShuffled};

void set_device(const Device& device);  // one more, and the current one from now on
void set_order(Order order);            // of threads and of blocks
void fail_next_launch(cudaError_t error);
int64_t launches();  // since the program started

// What was wrong with the last launch that failed; empty when none has.
const std::string& problem();

// Whether run(), which returns the bytes it computed, gives the same in every order.
bool same_in_every_order(const std::function<std::vector<uint8_t>()>& run);

// ---- For common.cuh and the device functions below.

// Where in the source a barrier or a warp operation stands.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared, size_t parameters,
                   const std::function<void()>& thread);
void barrier(Site site);
// All lanes in `mask` bring 8 bytes; returns those of the warp's 32 lanes, poison where none came.
const uint64_t* exchange(unsigned mask, uint64_t bits, Site site);
void* dynamic_shared();
// Memory of this block that `key` names; of `bytes`, fresh at first use in a block.
void* static_shared(const void* key, size_t bytes);
int lane();

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `source` counts within the aligned group of `width` lanes; outside of it the lane keeps its own.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, Site site) {
  const uint64_t* lanes = exchange(mask, to_bits(value), site);
  const int first = lane() / width * width;
  const bool inside = source >= 0 && source < width;
  return from_bits<T>(lanes[inside ? first + source : lane()]);
}

}  // namespace neq::emulation

#define NEQ_EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(NEQ_EMULATION_SITE) { neq::emulation::barrier({file, line}); }

inline void __syncwarp(unsigned mask = ~0u, NEQ_EMULATION_SITE) {
  neq::emulation::exchange(mask, 0, {file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, NEQ_EMULATION_SITE) {
  return neq::emulation::shuffle(mask, value, source & (width - 1), width, {file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, NEQ_EMULATION_SITE) {
  const int source = neq::emulation::lane() % width + static_cast<int>(delta);
  return neq::emulation::shuffle(mask, value, source, width, {file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, NEQ_EMULATION_SITE) {
  const int source = neq::emulation::lane() % width - static_cast<int>(delta);
  return neq::emulation::shuffle(mask, value, source, width, {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, NEQ_EMULATION_SITE) {
  const int source = (neq::emulation::lane() % width) ^ lanes;
  return neq::emulation::shuffle(mask, value, source, width, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, NEQ_EMULATION_SITE) {
  const uint64_t* lanes = neq::emulation::exchange(mask, predicate ? 1 : 0, {file, line});
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && lanes[lane] == 1) ballot |= 1u << lane;
  }
  return ballot;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }

// Conversions round to nearest, ties to even, as CUDA's do.
struct __half {
  uint16_t bits;
};
inline float __half2float(__half value) { return neq::Half::load(value.bits); }
inline __half __float2half_rn(float value) { return {neq::Half::store(value)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) { return neq::BFloat16::load(value.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {neq::BFloat16::store(value)}; }
