// The AVX-512 loops of pack_channels. A row is compacted by the instruction made for it, in
// registers: compressing straight to memory is slow on Zen 4 and later. Whole vectors are stored,
// the next one overwriting what was too much; masks take care of the ends.
#include "pack_channels.h"

#if defined(__x86_64__)

#include "element.h"
#include "isa.h"

namespace neq::pack {
namespace {

// 64 bytes of elements that are only moved.
template <class Storage>
struct Lanes;

template <>
struct Lanes<uint16_t> {
  using Mask = __mmask32;
  NEQ_AVX512_INLINE static __m512i load(Mask mask, const void* source) {
    return _mm512_maskz_loadu_epi16(mask, source);
  }
  NEQ_AVX512_INLINE static void store(void* target, Mask mask, __m512i value) {
    _mm512_mask_storeu_epi16(target, mask, value);
  }
  NEQ_AVX512_INLINE static __m512i compress(Mask mask, __m512i value) {
    return _mm512_maskz_compress_epi16(mask, value);
  }
};

template <>
struct Lanes<float> {
  using Mask = __mmask16;
  NEQ_AVX512_INLINE static __m512i load(Mask mask, const void* source) {
    return _mm512_maskz_loadu_epi32(mask, source);
  }
  NEQ_AVX512_INLINE static void store(void* target, Mask mask, __m512i value) {
    _mm512_mask_storeu_epi32(target, mask, value);
  }
  NEQ_AVX512_INLINE static __m512i compress(Mask mask, __m512i value) {
    return _mm512_maskz_compress_epi32(mask, value);
  }
};

template <>
struct Lanes<double> {
  using Mask = __mmask8;
  NEQ_AVX512_INLINE static __m512i load(Mask mask, const void* source) {
    return _mm512_maskz_loadu_epi64(mask, source);
  }
  NEQ_AVX512_INLINE static void store(void* target, Mask mask, __m512i value) {
    _mm512_mask_storeu_epi64(target, mask, value);
  }
  NEQ_AVX512_INLINE static __m512i compress(Mask mask, __m512i value) {
    return _mm512_maskz_compress_epi64(mask, value);
  }
};

NEQ_AVX512_INLINE void add_to(double* sums, __m512d value) {
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), value));
}

NEQ_AVX512_INLINE void add_to(double* sums, __m512 value) {
  add_to(sums, _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
  add_to(sums + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
}

NEQ_AVX512_INLINE double add_lanes(__m512d value) { return _mm512_reduce_add_pd(value); }

NEQ_AVX512_INLINE double add_lanes(__m512 value) {
  return add_lanes(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(value)),
                                 _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))));
}

// A vector of summands: as many elements as sums fit a register.
struct Float32 : Float {
  using Vector = __m512;
  static constexpr neq_dtype kDtype = NEQ_F32;
  static constexpr int64_t kSummands = 16;
  NEQ_AVX512_INLINE static __m512 summands(uint32_t mask, const float* source) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), source);
  }
  NEQ_AVX512_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

struct Float64 : Double {
  using Vector = __m512d;
  static constexpr neq_dtype kDtype = NEQ_F64;
  static constexpr int64_t kSummands = 8;
  NEQ_AVX512_INLINE static __m512d summands(uint32_t mask, const double* source) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), source);
  }
  NEQ_AVX512_INLINE static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
};

struct Float16 : Half {
  using Vector = __m512;
  static constexpr neq_dtype kDtype = NEQ_F16;
  static constexpr int64_t kSummands = 16;
  NEQ_AVX512_INLINE static __m512 summands(uint32_t mask, const uint16_t* source) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), source));
  }
  NEQ_AVX512_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

struct Brain16 : BFloat16 {
  using Vector = __m512;
  static constexpr neq_dtype kDtype = NEQ_BF16;
  static constexpr int64_t kSummands = 16;
  NEQ_AVX512_INLINE static __m512 summands(uint32_t mask, const uint16_t* source) {
    const __m256i narrow = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), source);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
  NEQ_AVX512_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

// The first n lanes.
NEQ_AVX512_INLINE uint32_t first(int64_t n) {
  return static_cast<uint32_t>((uint64_t{1} << n) - 1);
}

template <class Storage>
constexpr int64_t kGroup = 64 / sizeof(Storage);

template <class Storage>
NEQ_AVX512_INLINE void move_groups(Storage* target, const Storage* source, bool spills,
                                   const RowPlan& plan, uint32_t readable) {
  using Vector = Lanes<Storage>;
  using Mask = typename Vector::Mask;
  for (int64_t g = 0; g < plan.group_count; ++g) {
    const Group group = plan.groups[g];
    const __m512i moved =
        Vector::compress(static_cast<Mask>(group.lanes),
                         Vector::load(static_cast<Mask>(readable), source + group.source));
    if (spills) {
      _mm512_storeu_si512(target + group.target, moved);
    } else {
      const auto mask = static_cast<Mask>(first(__builtin_popcount(group.lanes)));
      Vector::store(target + group.target, mask, moved);
    }
  }
}

template <class Element>
NEQ_AVX512 void copy_rows(char* const* targets, const char* const* sources, int64_t rows,
                          int64_t exact, const RowPlan& shared) {
  using Storage = typename Element::Storage;
  const RowPlan plan = shared;  // a copy that the stores below cannot be suspected to change
  const uint32_t readable =
      first(plan.channels < kGroup<Storage> ? plan.channels : kGroup<Storage>);
  for (int64_t r = 0; r < rows; ++r) {
    auto* target = reinterpret_cast<Storage*>(targets[r]);
    const auto* source = reinterpret_cast<const Storage*>(sources[r]);
    move_groups(target, source, r < rows - exact, plan, readable);
    if (plan.group_count == 0) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < plan.count; ++i) target[i] = source[plan.index[i]];
    }
    for (int64_t i = plan.count; i < plan.width; ++i) target[i] = Storage{};
  }
}

// kVectors vectors of columns from column i on, `mask` of the lanes.
template <class Element, int kVectors>
NEQ_AVX512_INLINE void sum_columns(double* sums, char* const* packed, int64_t rows, int64_t i,
                                   uint32_t mask) {
  typename Element::Vector total[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const auto* row = reinterpret_cast<const typename Element::Storage*>(packed[r]) + i;
    for (int v = 0; v < kVectors; ++v) {
      total[v] = Element::add(total[v], Element::summands(mask, row + v * Element::kSummands));
    }
  }
  for (int v = 0; v < kVectors; ++v) add_to(sums + i + v * Element::kSummands, total[v]);
}

template <class Element>
NEQ_AVX512 void add_rows(double* sums, char* const* packed, int64_t rows, int64_t, int64_t width) {
  constexpr int64_t kLanes = Element::kSummands;
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    sum_columns<Element, 4>(sums, packed, rows, i, first(kLanes));
  }
  for (; i + kLanes <= width; i += kLanes) {
    sum_columns<Element, 1>(sums, packed, rows, i, first(kLanes));
  }
  if (i < width) sum_columns<Element, 1>(sums, packed, rows, i, first(width - i));
}

template <class Element>
NEQ_AVX512 double copy_run(char* to, const char* from, int64_t n) {
  using Storage = typename Element::Storage;
  constexpr int64_t kLanes = Element::kSummands;
  using Mask = typename Lanes<Storage>::Mask;
  auto* target = reinterpret_cast<Storage*>(to);
  const auto* source = reinterpret_cast<const Storage*>(from);
  typename Element::Vector sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
    for (int64_t at = 0; at < 4 * kLanes; at += kGroup<Storage>) {
      _mm512_storeu_si512(target + k + at, _mm512_loadu_si512(source + k + at));
    }
    for (int64_t part = 0; part < 4; ++part) {
      sums[part] =
          Element::add(sums[part], Element::summands(first(kLanes), source + k + part * kLanes));
    }
  }
  for (int64_t part = 0; k < n; k += kLanes, ++part) {
    const uint32_t mask = first(n - k < kLanes ? n - k : kLanes);
    Lanes<Storage>::store(target + k, static_cast<Mask>(mask),
                          Lanes<Storage>::load(static_cast<Mask>(mask), source + k));
    sums[part] = Element::add(sums[part], Element::summands(mask, source + k));
  }
  return add_lanes(Element::add(Element::add(sums[0], sums[1]), Element::add(sums[2], sums[3])));
}

template <class Element>
const Kernels& kernels() noexcept {
  static const Kernels table = {kGroup<typename Element::Storage>,
                                1,
                                2,
                                copy_rows<Element>,
                                add_rows<Element>,
                                copy_run<Element>,
                                scalar_kernels(Element::kDtype).copy_strided};
  return table;
}

}  // namespace

const Kernels& avx512_kernels(neq_dtype dtype) noexcept {
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
