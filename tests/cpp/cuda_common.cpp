// common.cuh on the emulated device, and the emulation itself: it must find what it is there for.
#include <cmath>
#include <limits>

#include "check.h"
#include "cuda/common.cuh"

namespace {

using namespace neq::cuda;
namespace emulation = neq::emulation;

template <class T>
std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
  const auto* first = reinterpret_cast<const uint8_t*>(values.data());
  return {first, first + values.size() * sizeof(T)};
}

// ---- Elements.

float half_value(int bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

float bfloat16_value(int bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

template <class T>
int bits_of(T value) {
  uint16_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Every value survives; half way between two neighbours the even one wins, and next to it the near.
template <class T>
void check_16_bits(float (*value)(int), int infinity) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float exact = value(bits);
    const T stored = from_sum<T>(exact);
    if (std::isnan(exact)) {
      CHECK(std::isnan(to_sum(stored)));
      continue;
    }
    CHECK(bits_of(stored) == bits);
    CHECK(std::memcmp(&exact, &(const float&)to_sum(stored), sizeof exact) == 0);
    if ((bits & 0x7fff) >= infinity - 1) continue;
    const float middle = exact + (value(bits + 1) - exact) / 2;
    CHECK(bits_of(from_sum<T>(middle)) == (bits % 2 ? bits + 1 : bits));
    CHECK(bits_of(from_sum<T>(std::nextafter(middle, exact))) == bits);
    CHECK(bits_of(from_sum<T>(std::nextafter(middle, value(bits + 1)))) == bits + 1);
  }
  CHECK(bits_of(from_sum<T>(std::numeric_limits<double>::max())) == infinity);
  CHECK(bits_of(from_sum<T>(-3.4e38f)) >= 0x8000 + infinity - 1);
}

void check_elements() {
  check_16_bits<__half>(half_value, 0x7c00);
  check_16_bits<__nv_bfloat16>(bfloat16_value, 0x7f80);
  static_assert(std::is_same_v<Sum<double>, double> && std::is_same_v<Sum<__half>, float>);
  size_t size = 0;
  const auto measure = [&](auto element) {
    size = sizeof element;
    return NEQ_OK;
  };
  CHECK(with_element(NEQ_F64, measure) == NEQ_OK && size == 8);
  CHECK(with_element(NEQ_BF16, measure) == NEQ_OK && size == 2);
  CHECK_REFUSED(with_element(7, measure), "got code 7");
}

// ---- Kernels that are right, and the same with one line missing.

// Turns a block's items round through shared memory; without the barrier some are not there yet.
template <bool kBarrier>
__global__ void reverse(float* out, const float* in) {
  NEQ_SHARED(float, tile, [2][64]);
  tile[blockIdx.x % 2][threadIdx.x] = in[global_thread()];
  if (kBarrier) __syncthreads();
  out[global_thread()] = tile[blockIdx.x % 2][63 - threadIdx.x];
}

// Passes a token along three times over; without the second barrier a fast thread overwrites what a
// slow one has yet to read.
template <bool kSecondBarrier>
__global__ void rotate(int* out) {
  int* const slots = dynamic_shared<int>();
  int token = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 3; ++round) {
    slots[threadIdx.x] = token;
    __syncthreads();
    token = slots[(threadIdx.x + 1) % blockDim.x];
    if (kSecondBarrier) __syncthreads();
  }
  out[threadIdx.x] = token;
}

// Lanes trade through memory; they do not run in step, so it takes a __syncwarp.
template <bool kSync>
__global__ void trade(int* out) {
  NEQ_SHARED(int, slots, [32]);
  slots[threadIdx.x] = static_cast<int>(threadIdx.x) * 3;
  if (kSync) __syncwarp();
  out[threadIdx.x] = slots[threadIdx.x ^ 1];
}

template <class Kernel>
std::vector<uint8_t> reversed(Kernel kernel) {
  std::vector<float> in(256), out(256, -1.0f);
  for (int i = 0; i < 256; ++i) in[i] = static_cast<float>(i);
  CHECK(launch(kernel, {4, 64}, nullptr, out.data(), in.data()) == NEQ_OK);
  return bytes_of(out);
}

template <class Kernel>
std::vector<uint8_t> ran(Kernel kernel, unsigned threads) {
  std::vector<int> out(threads, -1);
  CHECK(launch(kernel, {1, threads, threads * sizeof(int)}, nullptr, out.data()) == NEQ_OK);
  return bytes_of(out);
}

void check_missing_barriers_show() {
  CHECK(emulation::same_in_every_order([] { return reversed(reverse<true>); }));
  CHECK(!emulation::same_in_every_order([] { return reversed(reverse<false>); }));
  CHECK(emulation::same_in_every_order([] { return ran(rotate<true>, 96); }));
  CHECK(!emulation::same_in_every_order([] { return ran(rotate<false>, 96); }));
  CHECK(emulation::same_in_every_order([] { return ran(trade<true>, 32); }));
  CHECK(!emulation::same_in_every_order([] { return ran(trade<false>, 32); }));
  float right = 0;
  std::memcpy(&right, reversed(reverse<true>).data() + 4 * 64, sizeof right);
  CHECK(right == 127);
}

// Blocks that build on each other's results.
__global__ void chain(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x + 1] = out[blockIdx.x] + 1;
}

void check_dependent_blocks_show() {
  CHECK(!emulation::same_in_every_order([] {
    std::vector<int> out(9, 0);
    CHECK(launch(chain, {8, 32}, nullptr, out.data()) == NEQ_OK);
    return bytes_of(out);
  }));
}

__global__ void divergent_barrier(int half) {
  if (static_cast<int>(threadIdx.x) < half) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_without_one(int* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = __shfl_sync(kWholeWarp, 7, 0);
  __syncthreads();
}

__global__ void do_nothing() {}

struct Table {
  int values[1000];
};
__global__ void read_table(const __grid_constant__ Table table, int* out) {
  out[threadIdx.x] = table.values[threadIdx.x];
}

struct TooLarge {
  char bytes[40000];
};
__global__ void take(TooLarge) {}

void check_failures_are_reported() {
  CHECK_REFUSED(launch(divergent_barrier, {1, 64}, nullptr, 40), "kernel launch: unspecified");
  CHECK(emulation::problem().find("thread 0 at barrier cuda_common.cpp") != std::string::npos);
  CHECK(emulation::problem().find("thread 40 at its end") != std::string::npos);
  CHECK(launch(divergent_barrier, {1, 64}, nullptr, 64) == NEQ_OK);
  CHECK_REFUSED(launch(two_barriers, {1, 64}, nullptr), "unspecified launch failure");
  std::vector<int> out(64, 0);
  CHECK_REFUSED(launch(shuffle_without_one, {1, 64}, nullptr, out.data()), "unspecified");
  CHECK(emulation::problem().find("warp operation cuda_common.cpp") != std::string::npos);
  CHECK_REFUSED(launch(do_nothing, {1, 1025}, nullptr), "invalid configuration");
  CHECK_REFUSED(launch(do_nothing, {dim3(1, 70000), 32}, nullptr), "invalid configuration");
  CHECK_REFUSED(launch(do_nothing, {1, 32, 300 << 10}, nullptr), "dynamic shared memory: invalid");
  CHECK_REFUSED(launch(take, {1, 32}, nullptr, TooLarge{}), "invalid argument");
  emulation::fail_next_launch(cudaErrorInvalidDevice);
  CHECK_REFUSED(launch(do_nothing, {1, 32}, nullptr), "invalid device ordinal");
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(launch(do_nothing, {1, 32, 200 << 10}, nullptr) == NEQ_OK);
}

void check_launches() {
  const int64_t before = emulation::launches();
  CHECK(launch(do_nothing, {0, 32}, nullptr) == NEQ_OK);
  CHECK(emulation::launches() == before);
  Table table;
  for (int i = 0; i < 1000; ++i) table.values[i] = i * i;
  std::vector<int> out(64, -1);
  CHECK(launch(read_table, {1, 64}, nullptr, table, out.data()) == NEQ_OK);
  CHECK(out[63] == 63 * 63);
  CHECK(emulation::launches() == before + 1);
  CHECK(grid_for(0, 256, 100) == 0);
  CHECK(grid_for(257, 256, 100) == 2);
  CHECK(grid_for(int64_t{1} << 40, 256, 1000) == 1000);
  CHECK(grid_for(INT64_MAX, 1, INT64_MAX) == INT32_MAX);
  Device device;
  for (const int multiprocessors : {1, 132, 40}) {
    emulation::set_device({multiprocessors, 1024, 64 << 10, 64 << 10});
    CHECK(current_device(&device) == NEQ_OK && current_device(&device) == NEQ_OK);
    CHECK(device.multiprocessors == multiprocessors && device.threads_per_multiprocessor == 1024);
    CHECK(device.shared_per_multiprocessor == 64 << 10 && device.shared_per_block == 64 << 10);
  }
  emulation::set_device({});
}

// ---- Warps and blocks.

__global__ void warp_operations(float* sums, int* others, unsigned* ballots) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  sums[threadIdx.x] = warp_sum(static_cast<float>(threadIdx.x));
  others[threadIdx.x * 4] = __shfl_down_sync(kWholeWarp, lane, 3);
  others[threadIdx.x * 4 + 1] = __shfl_up_sync(kWholeWarp, lane, 3);
  others[threadIdx.x * 4 + 2] = __shfl_sync(kWholeWarp, lane, 9, 16);
  others[threadIdx.x * 4 + 3] = __shfl_xor_sync(kWholeWarp, lane, 5);
  ballots[threadIdx.x] = __ballot_sync(kWholeWarp, lane % 3 == 0);
  // Half a warp on its own.
  if (lane < 16) sums[threadIdx.x] += __shfl_xor_sync(0xffffu, 0.5f, 8);
}

__global__ void block_sums(double* out, const double* in) {
  const double once = block_sum<96>(in[global_thread()]);
  out[global_thread()] = once + block_sum<96>(2 * in[global_thread()]);
}

void check_warps_and_blocks() {
  CHECK(emulation::same_in_every_order([] {
    std::vector<float> sums(64);
    std::vector<int> others(256);
    std::vector<unsigned> ballots(64);
    CHECK(launch(warp_operations, {1, 64}, nullptr, sums.data(), others.data(), ballots.data()) ==
          NEQ_OK);
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32;
      CHECK(sums[t] == static_cast<float>(496 + t / 32 * 1024) + (lane < 16 ? 0.5f : 0.0f));
      CHECK(others[t * 4] == (lane + 3 < 32 ? lane + 3 : lane));
      CHECK(others[t * 4 + 1] == (lane >= 3 ? lane - 3 : lane));
      CHECK(others[t * 4 + 2] == lane / 16 * 16 + 9);
      CHECK(others[t * 4 + 3] == (lane ^ 5));
      CHECK(ballots[t] == 0x49249249u);
    }
    std::vector<double> in(288), out(288);
    for (int i = 0; i < 288; ++i) in[i] = 1.0 / (i + 1);
    CHECK(launch(block_sums, {3, 96}, nullptr, out.data(), in.data()) == NEQ_OK);
    for (int i = 0; i < 288; ++i) {
      double expected = 0;
      for (int k = i / 96 * 96; k < i / 96 * 96 + 96; ++k) expected += 3 * in[k];
      CHECK(std::fabs(out[i] - expected) < 1e-12);
    }
    return bytes_of(out);
  }));
}

// ---- Memory.

template <class V>
__global__ void copy(char* out, const char* in, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) {
    const auto here = i * static_cast<int64_t>(sizeof(V));
    i % 2 ? store(out + here, load<V>(in + here)) : store_once(out + here, load_once<V>(in + here));
  }
}

template <class V>
void check_copy() {
  std::vector<uint8_t> in(1000 * sizeof(V)), out(in.size(), 0);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(i * 7 + i / 256);
  CHECK(launch(copy<V>, {3, 64}, nullptr, reinterpret_cast<char*>(out.data()),
               reinterpret_cast<const char*>(in.data()), 1000) == NEQ_OK);
  CHECK(out == in);
}

void check_memory() {
  check_copy<float>();
  check_copy<__half>();
  check_copy<double>();
  check_copy<Vector<__nv_bfloat16, 8>>();
  check_copy<Vector<float, 2>>();
  CHECK(common_alignment(0) == 16);
  CHECK(common_alignment(32 | 24) == 8);
  CHECK(common_alignment(0x7f0000000002u) == 2);
  CHECK(common_alignment(7) == 1);
}

}  // namespace

int main() {
  check_elements();
  check_missing_barriers_show();
  check_dependent_blocks_show();
  check_failures_are_reported();
  check_launches();
  check_warps_and_blocks();
  check_memory();
  std::puts("cuda_common: ok");
}
