// What the fuzzers share: choices read from bytes, tensors that may be wrong in one place, a judge
// of their own of what is wrong, and a driver for compilers without libFuzzer.
//
// A fuzzer NAME.cpp defines fuzz(Input&). Everything a right call may touch lies in buffers of
// exactly that size, so that the address sanitizer sees every step beside them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <utility>
#include <vector>

#include "../check.h"

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  // Zeros when the bytes are spent: every input means something.
  uint64_t bits(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | (at_ < end_ ? *at_++ : 0u);
    return value;
  }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits(2) % static_cast<uint64_t>(high - low + 1));
  }
  bool once_in(int n) { return bits(1) % n == 0; }
  template <class Value>
  Value pick(std::initializer_list<Value> values) {
    return values.begin()[bits(1) % values.size()];
  }
  // What nobody should pass.
  int64_t wild() {
    if (once_in(4)) return static_cast<int64_t>(bits(8));
    return pick<int64_t>({-1, 0, 1, 2, 9, -7, INT32_MAX, INT64_C(1) << 31, INT64_C(1) << 32,
                          INT64_C(1) << 61, INT64_MAX / 2, INT64_MAX - 1, INT64_MAX, INT64_MIN});
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

// kMaybe: the contract leaves it open, like a size that overflows beside one that is 0.
enum class Right { kYes, kNo, kMaybe };

inline Right both(Right a, Right b) {
  if (a == Right::kNo || b == Right::kNo) return Right::kNo;
  return a == Right::kYes ? b : a;
}

inline Right right_if(bool condition) { return condition ? Right::kYes : Right::kNo; }

using Wide = __int128;

inline int64_t bytes_of(int32_t dtype) { return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2; }

// Elements, and elements from the first to behind the last; both saturate.
struct Extent {
  Wide count = 1;
  Wide span = 1;
};

inline Extent extent_of(const neq_tensor& tensor) {
  constexpr Wide kMost = Wide{1} << 100;
  Extent extent;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    extent.count = std::min(extent.count * tensor.size[d], kMost);
    extent.span += Wide{tensor.size[d] - 1} * tensor.stride[d];
    extent.span = std::min(extent.span, kMost);
    if (extent.count > (Wide{1} << 62)) extent.count = Wide{1} << 62;
  }
  if (extent.count == 0) extent.span = 0;
  return extent;
}

// Whether two elements may share memory: strides that no order of the dimensions nests.
inline bool overlaps(const neq_tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    if (tensor.size[d] > 1) dims.emplace_back(tensor.stride[d], tensor.size[d]);
  }
  std::sort(dims.begin(), dims.end());
  Wide last = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= last) return true;
    last += Wide{stride} * (size - 1);
  }
  return false;
}

// A tensor alone, of an output that nothing in it overlaps.
inline Right judge(const neq_tensor& tensor, bool output) {
  if (tensor.dtype < NEQ_F32 || tensor.dtype > NEQ_BF16) return Right::kNo;
  if (tensor.ndim < 1 || tensor.ndim > NEQ_MAX_DIMS) return Right::kNo;
  bool empty = false;
  bool large = false;
  Wide sizes = 1;  // what the product would be without those that are 0
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    if (tensor.size[d] < 0 || tensor.stride[d] < 0) return Right::kNo;
    empty |= tensor.size[d] == 0;
    large |= Wide{tensor.stride[d]} * std::max<int64_t>(tensor.size[d], 1) > (Wide{1} << 40);
    sizes = std::min(sizes * std::max<int64_t>(tensor.size[d], 1), Wide{1} << 62);
  }
  const Extent extent = extent_of(tensor);
  if (empty && !large && sizes <= Wide{1} << 40) return Right::kYes;
  if (empty || large) {  // an offset beyond 64 bits is wrong, one of a single element may be
    const bool overflow = !empty && extent.span * bytes_of(tensor.dtype) > Wide{INT64_MAX};
    return overflow ? Right::kNo : Right::kMaybe;
  }
  if (extent.count * bytes_of(tensor.dtype) > Wide{INT64_MAX}) return Right::kNo;
  for (int32_t d = 0; output && d < tensor.ndim; ++d) {
    if (tensor.size[d] > 1 && tensor.stride[d] == 0) return Right::kNo;
  }
  return output && overlaps(tensor) ? Right::kMaybe : Right::kYes;
}

// Of the first `width` places: rising channels, then a run of -1.
inline Right judge_index(const std::vector<int32_t>& index, int64_t width, int64_t channels) {
  if (width > static_cast<int64_t>(index.size())) return Right::kMaybe;
  int64_t last = -1;
  bool padding = false;
  for (int64_t i = 0; i < width; ++i) {
    if (index[i] == -1) {
      padding = true;
    } else if (padding || index[i] <= last || index[i] >= channels) {
      return Right::kNo;
    } else {
      last = index[i];
    }
  }
  return Right::kYes;
}

// Strides for the sizes: dimensions in any order, sometimes with gaps, sometimes expanded.
inline void lay_out(Input& input, neq_tensor* tensor, bool output) {
  int32_t order[NEQ_MAX_DIMS];
  for (int32_t d = 0; d < tensor->ndim; ++d) order[d] = d;
  for (int32_t d = tensor->ndim - 1; d > 0; --d) {
    if (input.once_in(2)) std::swap(order[d], order[input.between(0, d)]);
  }
  int64_t stride = input.once_in(6) ? 2 : 1;
  for (int32_t d = tensor->ndim - 1; d >= 0; --d) {
    tensor->stride[order[d]] = stride;
    stride *= std::max<int64_t>(tensor->size[order[d]], 1);
    if (input.once_in(8)) stride += input.between(1, 5);
    if (!output && input.once_in(16)) tensor->stride[order[d]] = 0;
  }
}

inline void damage(Input& input, neq_tensor* tensor) {
  const int64_t d = input.between(0, NEQ_MAX_DIMS - 1);
  switch (input.bits(1) % 5) {
    case 0:
      tensor->dtype = static_cast<int32_t>(input.wild());
      break;
    case 1:
      tensor->ndim = static_cast<int32_t>(input.wild());
      break;
    case 2:
      tensor->data = nullptr;
      break;
    case 3:
      tensor->size[d % std::max(tensor->ndim, 1)] = input.wild();
      break;
    default:
      tensor->stride[d % std::max(tensor->ndim, 1)] = input.wild();
  }
}

// A size nobody has, of a dimension that needs no memory for it as often as not.
inline void stretch(neq_tensor* tensor, int64_t dim, int64_t size, bool expanded) {
  tensor->size[dim] = size;
  if (expanded) tensor->stride[dim] = 0;
}

// Memory of exactly so many bytes: malloc's, which the sanitizer fences; a null pointer for none.
class Memory {
 public:
  explicit Memory(int64_t bytes, int fill = 0xff)
      : data_(bytes ? std::malloc(bytes) : nullptr), bytes_(bytes) {
    if (data_) std::memset(data_, fill, bytes);
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  int64_t bytes() const { return bytes_; }
  std::vector<uint8_t> copy() const { return {data(), data() + bytes_}; }
  bool equals(const std::vector<uint8_t>& other) const {
    return bytes_ == 0 || std::memcmp(data(), other.data(), bytes_) == 0;
  }
  void randomize(uint64_t seed) {
    for (int64_t i = 0; i < bytes_; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      data()[i] = static_cast<uint8_t>(seed >> 56);
    }
  }

 private:
  void* data_;
  int64_t bytes_;
};

// Right calls on more than this are not made: they would only take long.
constexpr int64_t kMostBytes = 1 << 16;

inline bool small(const neq_tensor& tensor) {
  const Extent extent = extent_of(tensor);
  return extent.span * 8 <= kMostBytes && extent.count * 8 <= kMostBytes;
}

inline int64_t memory_bytes(const neq_tensor& tensor) {
  return static_cast<int64_t>(extent_of(tensor).span) * bytes_of(tensor.dtype);
}

inline double value_at(const void* data, int32_t dtype) {
  if (bytes_of(dtype) == 8) {
    double value = 0;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
  uint32_t bits = 0;
  std::memcpy(&bits, data, bytes_of(dtype));
  if (dtype == NEQ_F16) {
    const int exponent = bits >> 10 & 31;
    const double fraction = bits & 1023;
    const double size = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                        : exponent == 0 ? std::ldexp(fraction, -24)
                                        : std::ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -size : size;
  }
  if (dtype == NEQ_BF16) bits <<= 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Numbers -4, -3.75 .. 4: every dtype holds them, and fp64 sums of their products are exact.
inline void fill_with_quarters(Memory* memory, int32_t dtype, uint64_t seed, bool positive) {
  const int64_t element = bytes_of(dtype);
  for (int64_t at = 0; at + element <= memory->bytes(); at += element) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const double value = (static_cast<int>(seed >> 32 & 31) - (positive ? 0 : 16)) / 4.0;
    const auto single = static_cast<float>(value);
    uint32_t bits = 0;
    std::memcpy(&bits, &single, sizeof bits);
    if (dtype == NEQ_F64) std::memcpy(memory->data() + at, &value, sizeof value);
    if (dtype == NEQ_F32) std::memcpy(memory->data() + at, &bits, sizeof bits);
    if (dtype == NEQ_BF16) bits >>= 16;
    if (dtype == NEQ_F16 && value != 0) {
      bits = (bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023);
    }
    if (element == 2) std::memcpy(memory->data() + at, &bits, 2);
  }
}

// Whether the message begins with one of the arguments a function has.
inline bool error_names(std::initializer_list<const char*> arguments) {
  return std::any_of(arguments.begin(), arguments.end(), [](const char* name) {
    return std::strncmp(neq_last_error(), name, std::strlen(name)) == 0;
  });
}

inline void force_isa(Input& input) {
  const auto isa = static_cast<neq_isa>(input.between(0, 3));
  const neq_status status = neq_cpu_set_isa(isa);
  CHECK((status == NEQ_OK) == (isa <= NEQ_ISA_AVX512 && neq_cpu_isa_supported(isa) != 0));
}

inline const neq_parallel* any_threads(Input& input) {
  static const neq_parallel reversed = backwards();
  return input.once_in(2) ? &reversed : nullptr;
}

void fuzz(Input& input);

#if defined(NEQ_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  fuzz(input);
  return 0;
}
#else
#include <chrono>
#include <random>

// fuzz NAME [inputs [first seed]]: each input comes from its own seed, so that any can be repeated.
int main(int argc, char** argv) {
  const int64_t inputs = argc > 1 ? std::atoll(argv[1]) : 5000;
  const int64_t first = argc > 2 ? std::atoll(argv[2]) : 1;
  const auto started = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < inputs; ++i) {
    std::mt19937 random(static_cast<uint32_t>(first + i));
    std::vector<uint8_t> bytes(random() % 512);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    if (std::getenv("NEQ_FUZZ_VERBOSE")) {
      std::fprintf(stderr, "seed %lld\n", static_cast<long long>(first + i));
    }
    Input input(bytes.data(), bytes.size());
    fuzz(input);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
  std::printf("%lld inputs, %.0f a second\n", static_cast<long long>(inputs),
              static_cast<double>(inputs) / took.count());
}
#endif
