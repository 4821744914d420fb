// The AVX2 loops of pack_channels. A row is compacted by shuffles known in advance: the active
// lanes of a group move to its front, the whole vector is stored, and the next group overwrites
// what was too much.
#include "pack_channels.h"

#if defined(__x86_64__)

#include <array>
#include <cstring>

#include "element.h"
#include "isa.h"

namespace neq::pack {
namespace {

// front[m] lists the set bits of m in rising order, each as kBytes byte numbers: a shuffle that
// brings those lanes to the front.
template <unsigned kMasks, unsigned kBytes>
constexpr auto make_front() {
  constexpr unsigned kLanes = kMasks == 16 ? 4 : 8;
  std::array<std::array<uint8_t, kLanes * kBytes>, kMasks> front{};
  for (unsigned mask = 0; mask < kMasks; ++mask) {
    unsigned next = 0;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      for (unsigned byte = 0; byte < kBytes; ++byte) {
        front[mask][next++] = static_cast<uint8_t>(lane * kBytes + byte);
      }
    }
  }
  return front;
}

constexpr auto kFront32 = make_front<256, 1>();  // eight lanes of 32 bits
constexpr auto kFront64 = make_front<16, 2>();   // four pairs of them
constexpr auto kFront16 = make_front<256, 2>();  // eight lanes of 16 bits, in bytes

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

NEQ_AVX2_INLINE void add_to(double* sums, __m256d value) {
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), value));
}

NEQ_AVX2_INLINE void add_to(double* sums, __m256 value) {
  add_to(sums, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
  add_to(sums + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
}

NEQ_AVX2_INLINE double add_lanes(__m256d value) {
  const __m128d half = _mm256_castpd256_pd128(value) + _mm256_extractf128_pd(value, 1);
  return _mm_cvtsd_f64(half) + _mm_cvtsd_f64(_mm_unpackhi_pd(half, half));
}

NEQ_AVX2_INLINE double add_lanes(__m256 value) {
  return add_lanes(_mm256_cvtps_pd(_mm256_castps256_ps128(value)) +
                   _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
}

// Read from place n on: a mask of 8 lanes of 32 bits that keeps the last n.
constexpr int32_t kLastLanes[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};

NEQ_AVX2_INLINE void permute32(void* target, const void* source, const uint8_t* front) {
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(front));
  store256(target, _mm256_permutevar8x32_epi32(load256(source), _mm256_cvtepu8_epi32(lanes)));
}

// 32 bytes of elements of 2, shuffled as two halves, summed as floats eight at a time.
struct Narrow {
  using Vector = __m256;
  static constexpr int64_t kGroup = 16;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kSparse = 4;
  NEQ_AVX2_INLINE static void compress(uint16_t* target, const uint16_t* source, Group group) {
    const __m128i low = load128(kFront16[group.lanes & 0xff].data());
    const __m128i high = load128(kFront16[group.lanes >> 8].data());
    const __m256i moved =
        _mm256_shuffle_epi8(load256(source + group.source), _mm256_set_m128i(high, low));
    store128(target + group.target, _mm256_castsi256_si128(moved));
    store128(target + group.middle, _mm256_extracti128_si256(moved, 1));
  }
  NEQ_AVX2_INLINE static void copy(void* target, const void* source) {
    store128(target, load128(source));
  }
  NEQ_AVX2_INLINE static __m256 keep_last(__m256 value, int64_t n) {
    return _mm256_and_ps(value, _mm256_castsi256_ps(load256(kLastLanes + n)));
  }
};

struct Float32 : Float {
  using Vector = __m256;
  static constexpr neq_dtype kDtype = NEQ_F32;
  static constexpr int64_t kGroup = 8;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kSparse = 2;
  NEQ_AVX2_INLINE static void compress(float* target, const float* source, Group group) {
    permute32(target + group.target, source + group.source, kFront32[group.lanes].data());
  }
  NEQ_AVX2_INLINE static void copy(float* target, const float* source) {
    store256(target, load256(source));
  }
  NEQ_AVX2_INLINE static __m256 load_vector(const float* source) { return _mm256_loadu_ps(source); }
  NEQ_AVX2_INLINE static __m256 keep_last(__m256 value, int64_t n) {
    return Narrow::keep_last(value, n);
  }
};

struct Float64 : Double {
  using Vector = __m256d;
  static constexpr neq_dtype kDtype = NEQ_F64;
  static constexpr int64_t kGroup = 4;
  static constexpr int64_t kLanes = 4;
  static constexpr int64_t kSparse = 2;
  NEQ_AVX2_INLINE static void compress(double* target, const double* source, Group group) {
    permute32(target + group.target, source + group.source, kFront64[group.lanes].data());
  }
  NEQ_AVX2_INLINE static void copy(double* target, const double* source) {
    store256(target, load256(source));
  }
  NEQ_AVX2_INLINE static __m256d load_vector(const double* source) {
    return _mm256_loadu_pd(source);
  }
  NEQ_AVX2_INLINE static __m256d keep_last(__m256d value, int64_t n) {
    return _mm256_and_pd(value, _mm256_castsi256_pd(load256(kLastLanes + 2 * n)));
  }
};

struct Float16 : Half, Narrow {
  static constexpr neq_dtype kDtype = NEQ_F16;
  NEQ_AVX2_INLINE static __m256 load_vector(const uint16_t* source) {
    return _mm256_cvtph_ps(load128(source));
  }
};

struct Brain16 : BFloat16, Narrow {
  static constexpr neq_dtype kDtype = NEQ_BF16;
  NEQ_AVX2_INLINE static __m256 load_vector(const uint16_t* source) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(source)), 16));
  }
};

template <class Element>
NEQ_AVX2 void copy_rows(char* const* targets, const char* const* sources, int64_t rows,
                        int64_t exact, const RowPlan& shared) {
  using Storage = typename Element::Storage;
  const RowPlan plan = shared;  // a copy that the stores below cannot be suspected to change
  for (int64_t r = 0; r < rows; ++r) {
    auto* target = reinterpret_cast<Storage*>(targets[r]);
    const auto* source = reinterpret_cast<const Storage*>(sources[r]);
    const bool spills = r < rows - exact;
    const int64_t groups = spills ? plan.group_count : plan.exact_groups;
    for (int64_t g = 0; g < groups; ++g) {
      prefetch_ahead(source + plan.groups[g].source);
      Element::compress(target, source, plan.groups[g]);
    }
    if (!spills || plan.group_count == 0) {
#pragma GCC unroll 4
      for (int64_t i = plan.tail; i < plan.count; ++i) target[i] = source[plan.index[i]];
    }
    for (int64_t i = plan.count; i < plan.width; ++i) target[i] = Storage{};
  }
}

// kVectors vectors of columns from column i on.
template <class Element, int kVectors>
NEQ_AVX2_INLINE void sum_columns(typename Element::Vector* sums, char* const* packed, int64_t rows,
                                 int64_t i) {
  using Storage = typename Element::Storage;
  for (int64_t r = 0; r < rows; ++r) {
    const Storage* row = reinterpret_cast<const Storage*>(packed[r]) + i;
    for (int v = 0; v < kVectors; ++v) sums[v] += Element::load_vector(row + v * Element::kLanes);
  }
}

template <class Element>
NEQ_AVX2 void add_rows(double* sums, char* const* packed, int64_t rows, int64_t exact,
                       int64_t width) {
  using Storage = typename Element::Storage;
  constexpr int64_t kLanes = Element::kLanes;
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    typename Element::Vector sum[4] = {};
    sum_columns<Element, 4>(sum, packed, rows, i);
    for (int v = 0; v < 4; ++v) add_to(sums + i + v * kLanes, sum[v]);
  }
  for (; i + kLanes <= width; i += kLanes) {
    typename Element::Vector sum = {};
    sum_columns<Element, 1>(&sum, packed, rows, i);
    add_to(sums + i, sum);
  }
  if (i == width) return;
  // Lanes beyond the width hold the next rows' and end up in the padding of the sums.
  typename Element::Vector sum = {};
  sum_columns<Element, 1>(&sum, packed, rows - exact, i);
  add_to(sums + i, sum);
  for (; i < width; ++i) {
    for (int64_t r = rows - exact; r < rows; ++r) {
      sums[i] += Element::load(reinterpret_cast<const Storage*>(packed[r])[i]);
    }
  }
}

// One vector, added to `sum` if kSum.
template <class Element, bool kSum>
NEQ_AVX2_INLINE void move_vector(typename Element::Storage* target,
                                 const typename Element::Storage* source,
                                 typename Element::Vector* sum) {
  Element::copy(target, source);
  if constexpr (kSum) *sum += Element::load_vector(source);
}

// Copies n elements, at least a vector, asks for as many from `ahead` on, and returns the sum if
// kSum.
template <class Element, bool kSum>
NEQ_AVX2_INLINE double copy_run(typename Element::Storage* target,
                                const typename Element::Storage* source,
                                const typename Element::Storage* ahead, int64_t n) {
  constexpr int64_t kLanes = Element::kLanes;
  constexpr int64_t kLine = 64 / sizeof(typename Element::Storage);
  typename Element::Vector sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
    for (int64_t at = 0; at < 4 * kLanes; at += kLine) __builtin_prefetch(ahead + k + at);
    for (int64_t at = 0; at < 4; ++at) {
      move_vector<Element, kSum>(target + k + at * kLanes, source + k + at * kLanes, sums + at);
    }
  }
  __builtin_prefetch(ahead + k);
  __builtin_prefetch(ahead + n - 1);
  for (; k + kLanes <= n; k += kLanes) move_vector<Element, kSum>(target + k, source + k, sums);
  if (k < n) {
    // The last vector overlaps the one before it; lanes already counted count as zero.
    Element::copy(target + n - kLanes, source + n - kLanes);
    if constexpr (kSum) {
      sums[1] += Element::keep_last(Element::load_vector(source + n - kLanes), n - k);
    }
  }
  return kSum ? add_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) : 0;
}

template <class Element, bool kSum>
NEQ_AVX2_INLINE void copy_all(double* sums, const Runs& shared) {
  using Storage = typename Element::Storage;
  const Runs runs = shared;
  const RunsAhead ahead(runs, runs.length * sizeof(Storage));
  for (int64_t i = 0; i < runs.count; ++i) {
    auto* target = reinterpret_cast<Storage*>(runs.target + i * runs.target_step);
    const auto* source =
        reinterpret_cast<const Storage*>(runs.source + runs.index[i] * runs.source_step);
    const auto* next = reinterpret_cast<const Storage*>(ahead.of(i));
    double sum = 0;
    for (int64_t k = 0, n; k < runs.length; k += n) {
      const int64_t left = runs.length - k;
      n = left < kMaxRun + Element::kLanes ? left : kMaxRun;  // no part is shorter than a vector
      sum += copy_run<Element, kSum>(target + k, source + k, next + k, n);
    }
    if (kSum) sums[i] += sum;
  }
}

template <class Element>
NEQ_AVX2 void copy_runs(double* sums, const Runs& runs) {
  if (runs.length < Element::kLanes) {
    scalar_kernels(Element::kDtype).copy_runs(sums, runs);
  } else if (sums) {
    copy_all<Element, true>(sums, runs);
  } else {
    copy_all<Element, false>(nullptr, runs);
  }
}

template <class Element>
const Kernels& kernels() noexcept {
  static const Kernels table = {Element::kGroup,    Element::kGroup,
                                Element::kSparse,   copy_rows<Element>,
                                add_rows<Element>,  nullptr,
                                copy_runs<Element>, scalar_kernels(Element::kDtype).copy_strided};
  return table;
}

}  // namespace

const Kernels& avx2_kernels(neq_dtype dtype) noexcept {
  switch (dtype) {
    case NEQ_F64:
      return kernels<Float64>();
    case NEQ_F16:
      return kernels<Float16>();
    case NEQ_BF16:
      return kernels<Brain16>();
    case NEQ_F32:
      break;
  }
  return kernels<Float32>();
}

}  // namespace neq::pack

#endif
