// The AVX2 loops of pack_channels. A row is compacted by shuffles known in advance: the active
// lanes of a group move to its front, the whole vector is stored, and the next group overwrites
// what was too much. Compiled for plain x86-64; each function asks for what it uses.
#include "pack_channels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <cstring>

#include "element.h"

#define NEQ_AVX2 [[gnu::target("avx2,f16c")]]
#define NEQ_AVX2_INLINE [[gnu::target("avx2,f16c"), gnu::always_inline]] inline

namespace neq::pack {
namespace {

// front[m] lists the set bits of m in rising order: a shuffle that brings those lanes to the front.
constexpr std::array<std::array<uint8_t, 8>, 256> make_front() {
  std::array<std::array<uint8_t, 8>, 256> front{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    unsigned next = 0;
    for (uint8_t lane = 0; lane < 8; ++lane) {
      if (mask >> lane & 1) front[mask][next++] = lane;
    }
  }
  return front;
}

// The same in bytes of 16-bit lanes, and in 32-bit halves of 64-bit lanes.
template <unsigned kMasks, unsigned kLanes>
constexpr std::array<std::array<uint8_t, 2 * kLanes>, kMasks> make_paired_front() {
  const auto front = make_front();
  std::array<std::array<uint8_t, 2 * kLanes>, kMasks> paired{};
  for (unsigned mask = 0; mask < kMasks; ++mask) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const uint8_t from = front[mask][lane];
      paired[mask][2 * lane] = static_cast<uint8_t>(2 * from);
      paired[mask][2 * lane + 1] = static_cast<uint8_t>(2 * from + 1);
    }
  }
  return paired;
}

constexpr auto kFront = make_front();
constexpr auto kFrontBytes = make_paired_front<256, 8>();
constexpr auto kFrontHalves = make_paired_front<16, 4>();

NEQ_AVX2_INLINE __m256i load256(const void* source) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(source));
}

NEQ_AVX2_INLINE void store256(void* target, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(target), value);
}

NEQ_AVX2_INLINE __m128i load128(const void* source) {
  return _mm_loadu_si128(static_cast<const __m128i*>(source));
}

NEQ_AVX2_INLINE void store128(void* target, __m128i value) {
  _mm_storeu_si128(static_cast<__m128i*>(target), value);
}

NEQ_AVX2_INLINE void compress32(void* target, const void* source, const uint8_t* front) {
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(front));
  store256(target, _mm256_permutevar8x32_epi32(load256(source), _mm256_cvtepu8_epi32(lanes)));
}

NEQ_AVX2_INLINE void compress16(void* target, const void* source, uint32_t lanes) {
  store128(target, _mm_shuffle_epi8(load128(source), load128(kFrontBytes[lanes].data())));
}

NEQ_AVX2_INLINE void add_to(double* sums, __m256d value) {
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), value));
}

NEQ_AVX2_INLINE void add_to(double* sums, __m256 value) {
  add_to(sums, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
  add_to(sums + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
}

// kLanes neighbouring elements in a vector register: how to compact, copy and sum them.
struct Float32 : Float {
  static constexpr int64_t kLanes = 8;
  NEQ_AVX2_INLINE static void compress(float* target, const float* source, uint32_t lanes) {
    compress32(target, source, kFront[lanes].data());
  }
  NEQ_AVX2_INLINE static void copy(float* target, const float* source) {
    store256(target, load256(source));
  }
  NEQ_AVX2_INLINE static __m256 vector(const float* source) { return _mm256_loadu_ps(source); }
};

struct Float64 : Double {
  static constexpr int64_t kLanes = 4;
  NEQ_AVX2_INLINE static void compress(double* target, const double* source, uint32_t lanes) {
    compress32(target, source, kFrontHalves[lanes].data());
  }
  NEQ_AVX2_INLINE static void copy(double* target, const double* source) {
    store256(target, load256(source));
  }
  NEQ_AVX2_INLINE static __m256d vector(const double* source) { return _mm256_loadu_pd(source); }
};

template <class Element>
struct Bits16 : Element {
  static constexpr int64_t kLanes = 8;
  NEQ_AVX2_INLINE static void compress(uint16_t* target, const uint16_t* source, uint32_t lanes) {
    compress16(target, source, lanes);
  }
  NEQ_AVX2_INLINE static void copy(uint16_t* target, const uint16_t* source) {
    store128(target, load128(source));
  }
};

struct Float16 : Bits16<Half> {
  NEQ_AVX2_INLINE static __m256 vector(const uint16_t* source) {
    return _mm256_cvtph_ps(load128(source));
  }
};

struct Brain16 : Bits16<BFloat16> {
  NEQ_AVX2_INLINE static __m256 vector(const uint16_t* source) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(source)), 16));
  }
};

template <class Element>
NEQ_AVX2 void copy_rows(char* const* targets, const char* const* sources, int64_t rows,
                        const RowPlan& plan) {
  using Storage = typename Element::Storage;
  for (int64_t r = 0; r < rows; ++r) {
    auto* target = reinterpret_cast<Storage*>(targets[r]);
    const auto* source = reinterpret_cast<const Storage*>(sources[r]);
    for (int64_t g = 0; g < plan.group_count; ++g) {
      const Group& group = plan.groups[g];
      Element::compress(target + group.target, source + group.source, group.lanes);
    }
    for (int64_t i = plan.tail; i < plan.count; ++i) target[i] = source[plan.index[i]];
    std::memset(target + plan.count, 0, (plan.width - plan.count) * sizeof(Storage));
  }
}

template <class Element>
NEQ_AVX2 void add_rows(double* sums, char* const* packed, int64_t rows, int64_t width) {
  using Storage = typename Element::Storage;
  int64_t i = 0;
  for (; i + Element::kLanes <= width; i += Element::kLanes) {
    auto sum = Element::vector(reinterpret_cast<const Storage*>(packed[0]) + i);
    for (int64_t r = 1; r < rows; ++r) {
      sum += Element::vector(reinterpret_cast<const Storage*>(packed[r]) + i);
    }
    add_to(sums + i, sum);
  }
  for (; i < width; ++i) {
    typename Element::Sum sum = 0;
    for (int64_t r = 0; r < rows; ++r) {
      sum += Element::load(reinterpret_cast<const Storage*>(packed[r])[i]);
    }
    sums[i] += sum;
  }
}

template <class Element>
NEQ_AVX2 double copy_run(char* to, const char* from, int64_t n) {
  using Storage = typename Element::Storage;
  constexpr int64_t kLanes = Element::kLanes;
  auto* target = reinterpret_cast<Storage*>(to);
  const auto* source = reinterpret_cast<const Storage*>(from);
  decltype(Element::vector(source)) sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
    for (int64_t part = 0; part < 4; ++part) {
      Element::copy(target + k + part * kLanes, source + k + part * kLanes);
      sums[part] += Element::vector(source + k + part * kLanes);
    }
  }
  for (; k + kLanes <= n; k += kLanes) {
    Element::copy(target + k, source + k);
    sums[0] += Element::vector(source + k);
  }
  double lanes[kLanes] = {};
  for (const auto& sum : sums) add_to(lanes, sum);
  double total = 0;
  for (const double lane : lanes) total += lane;
  for (; k < n; ++k) {
    target[k] = source[k];
    total += Element::load(source[k]);
  }
  return total;
}

template <class Element>
const Kernels& kernels(neq_dtype dtype) noexcept {
  static const Kernels table = {Element::kLanes, copy_rows<Element>, add_rows<Element>,
                                copy_run<Element>, scalar_kernels(dtype).copy_strided};
  return table;
}

}  // namespace

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kernels<Float64>(dtype);
    case NEQ_F16:
      return kernels<Float16>(dtype);
    case NEQ_BF16:
      return kernels<Brain16>(dtype);
    case NEQ_F32:
      break;
  }
  return kernels<Float32>(dtype);
}

}  // namespace neq::pack

#endif
