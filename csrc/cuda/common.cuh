// What every CUDA kernel of the core stands on, and the only place that launches, reaches for
// shared memory or picks machine instructions: under NEQ_EMULATE the same kernels run as plain C++
// (tests/cpp/emulation), without a GPU and under the sanitizers.
//
// A kernel file holds `__global__` functions and, below them, a launcher for the C ABI:
//
//   template <class T>
//   __global__ void __launch_bounds__(256) double_all(T* out, const T* in, int64_t n) {
//     for (int64_t i = global_thread(); i < n; i += global_threads()) { ... }
//   }
//   neq_status neq_double_all_cuda(const neq_tensor* in, ..., void* stream) {
//     Device device;
//     if (const neq_status status = current_device(&device)) return status;
//     return with_element(in->dtype, [&](auto element) {
//       using T = decltype(element);
//       return launch(double_all<T>, {grid_for(n, 256, 8 * device.multiprocessors), 256}, stream,
//                     out, in, n);
//     });
//   }
//
//   launch           a kernel on a stream; a grid of nothing launches nothing; status back
//   current_device   multiprocessors and limits, asked of the driver once per device
//   with_element     a neq_dtype as a type: float, double, __half, __nv_bfloat16
//   Sum, to_sum, from_sum   what elements are summed in (float; double for double), there and back
//   Vector, load, store     up to 16 bytes at once, *_once past the caches; common_alignment says
//                    how many pointers and strides allow
//   opaque           keeps the compiler from reordering address arithmetic at registers' expense
//   NEQ_SHARED       static shared memory:  NEQ_SHARED(float, tile, [32][33]);
//   dynamic_shared   what the launch asked for, above 48 KiB too
//   warp_sum, block_sum     in a fixed order; every thread gets the result
//
// Tables for many tensors travel by value in a kernel's parameters (up to 4 KiB on every driver):
// declare them `const __grid_constant__ Table table`, which spares each thread a copy. Warp
// shuffles,
// __ballot_sync, __syncwarp and __syncthreads are CUDA's own; every thread of a block, none
// returned, must reach the same __syncthreads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(NEQ_EMULATE)
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "neq/neq.h"
#include "status.h"

namespace neq::cuda {

// ---- Host: devices and launches.

inline neq_status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return NEQ_OK;
  cudaGetLastError();  // said here; whoever asks next must not find it again
  return fail(NEQ_CUDA_ERROR, "%s: %s", what, cudaGetErrorString(error));
}

struct Device {
  int multiprocessors;
  int threads_per_multiprocessor;
  int shared_per_multiprocessor;
  int shared_per_block;  // at most, for dynamic_shared
};

// Of the calling thread's current device.
neq_status current_device(Device* device);

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared = 0;  // bytes for dynamic_shared
};

// Blocks of `per_block` items each, as many as `items` needs and `most` allows; the rest is for
// grid-stride loops.
inline unsigned grid_for(int64_t items, int64_t per_block, int64_t most) {
  const int64_t needed = items / per_block + (items % per_block != 0);
  const int64_t blocks = needed < most ? needed : most;
  return static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX);
}

namespace detail {
template <class T>
struct Same {
  using type = T;
};
inline constexpr size_t kSharedDefault = 48 << 10;
}  // namespace detail

template <class... Parameters>
neq_status launch(void (*kernel)(Parameters...), const Grid& grid, void* stream,
                  typename detail::Same<Parameters>::type... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return NEQ_OK;
  const void* const address = reinterpret_cast<const void*>(kernel);
  if (grid.shared > detail::kSharedDefault) {
    const cudaError_t error = cudaFuncSetAttribute(
        address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared));
    if (error != cudaSuccess) return check(error, "dynamic shared memory");
  }
#if defined(NEQ_EMULATE)
  (void)stream;
  const cudaError_t error =
      emulation::launch(address, grid.blocks, grid.threads, grid.shared,
                        (sizeof(Parameters) + ... + 0), [&] { kernel(arguments...); });
#else
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
  const cudaError_t error = cudaLaunchKernel(address, grid.blocks, grid.threads, pointers,
                                             grid.shared, static_cast<cudaStream_t>(stream));
#endif
  return check(error, "kernel launch");
}

// ---- Elements.

// Calls f with a value of the element type, to be taken as `using T = decltype(element)`.
template <class F>
neq_status with_element(int32_t dtype, F&& f) {
  switch (dtype) {
    case NEQ_F32:
      return f(float{});
    case NEQ_F64:
      return f(double{});
    case NEQ_F16:
      return f(__half{});
    case NEQ_BF16:
      return f(__nv_bfloat16{});
    default:
      return fail(NEQ_UNSUPPORTED, "expected dtype f32, f64, f16 or bf16, got code %d", dtype);
  }
}

namespace detail {
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
}  // namespace detail

template <class T>
using Sum = typename detail::SumOf<T>::type;

__device__ __forceinline__ float to_sum(float value) { return value; }
__device__ __forceinline__ double to_sum(double value) { return value; }
__device__ __forceinline__ float to_sum(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_sum(__nv_bfloat16 value) { return __bfloat162float(value); }

// To nearest, ties to even; 16-bit types by way of float, like the CPU kernels.
template <class T>
__device__ __forceinline__ T from_sum(double value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
__device__ __forceinline__ T from_sum(float value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return static_cast<T>(value);
  }
}

// ---- Memory.

// N elements that one instruction moves: sizeof(T) * N is 2, 4, 8 or 16.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// The largest of 16, 8, 4, 2, 1 that divides all that was or-ed together: addresses, strides in
// bytes, lengths in bytes.
inline int64_t common_alignment(uint64_t bits) {
  bits |= 16;
  return static_cast<int64_t>(bits & (~bits + 1));
}

namespace detail {
template <size_t bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class To, class From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace detail

// V is an element or a Vector; the address must be a multiple of its size.
template <class V>
__device__ __forceinline__ V load(const void* address) {
  using Word = typename detail::Word<sizeof(V)>::type;
  return detail::bits_as<V>(*static_cast<const Word*>(address));
}

template <class V>
__device__ __forceinline__ void store(void* address, V value) {
  using Word = typename detail::Word<sizeof(V)>::type;
  *static_cast<Word*>(address) = detail::bits_as<Word>(value);
}

// For what nobody will read again soon: evicted first.
template <class V>
__device__ __forceinline__ V load_once(const void* address) {
#if defined(NEQ_EMULATE)
  return load<V>(address);
#else
  using Word = typename detail::Word<sizeof(V)>::type;
  return detail::bits_as<V>(__ldcs(static_cast<const Word*>(address)));
#endif
}

template <class V>
__device__ __forceinline__ void store_once(void* address, V value) {
#if defined(NEQ_EMULATE)
  store(address, value);
#else
  using Word = typename detail::Word<sizeof(V)>::type;
  __stcs(static_cast<Word*>(address), detail::bits_as<Word>(value));
#endif
}

// The value itself, of which the compiler knows nothing. In unrolled loops it would turn pointers
// that advance into one base and many multiples of the step, all kept in registers.
template <class T>
__device__ __forceinline__ T opaque(T value) {
#if !defined(NEQ_EMULATE)
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
#endif
  return value;
}

// A pointer to global memory stays known as one: unknown ones are loaded from the slow way.
template <class T>
__device__ __forceinline__ T* opaque(T* pointer) {
#if !defined(NEQ_EMULATE)
  asm volatile("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

#if defined(NEQ_EMULATE)
#define NEQ_SHARED(type, name, ...)     \
  using name##_type = type __VA_ARGS__; \
  static char name##_key;               \
  auto& name =                          \
      *static_cast<name##_type*>(neq::emulation::static_shared(&name##_key, sizeof(name##_type)))
#else
#define NEQ_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#endif

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(NEQ_EMULATE)
  return static_cast<T*>(emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char neq_dynamic_shared[];
  return reinterpret_cast<T*>(neq_dynamic_shared);
#endif
}

// ---- Threads. Blocks are one-dimensional here.

__device__ __forceinline__ int64_t global_thread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t global_threads() { return int64_t{gridDim.x} * blockDim.x; }

inline constexpr unsigned kWholeWarp = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kWholeWarp, value, lanes);
  return value;
}

// Of a block of kThreads, a multiple of 32. Every thread must call it; a barrier on either side.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T value) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  NEQ_SHARED(T, warps, [kThreads / 32]);
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += warps[warp];
  return sum;
}

}  // namespace neq::cuda
