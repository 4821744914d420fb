// The AVX-512 loops of pack_channels. A row is compacted by the instruction made for it, in
// registers: compressing straight to memory is slow on Zen 4 and later. Whole vectors are stored,
// the next one overwriting what was too much. Masks take care of the ends and of nothing else: a
// masked load keeps the processor from streaming ahead, and halves the speed (Zen 5).
#include "pack_channels.h"

#if defined(__x86_64__)

#include <cstring>

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

// The first n lanes.
NEQ_AVX512_INLINE uint32_t first(int64_t n) {
  return static_cast<uint32_t>((uint64_t{1} << n) - 1);
}

template <class Storage>
constexpr int64_t kGroup = 64 / sizeof(Storage);

// sums[k] += value[k] for the first n lanes.
NEQ_AVX512_INLINE void add_first(double* sums, int64_t n, __m512d value) {
  const auto mask = static_cast<__mmask8>(first(n));
  _mm512_mask_storeu_pd(sums, mask, _mm512_add_pd(_mm512_maskz_loadu_pd(mask, sums), value));
}

// Adds the lanes of `mask` to neighbouring sums.
NEQ_AVX512_INLINE void add_lanes_of(double* sums, uint32_t mask, __m512d value) {
  const auto lanes = static_cast<__mmask8>(mask);
  add_first(sums, __builtin_popcount(mask), _mm512_maskz_compress_pd(lanes, value));
}

NEQ_AVX512_INLINE void add_lanes_of(double* sums, uint32_t mask, __m512 value) {
  const int n = __builtin_popcount(mask);
  const __m512 front = _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), value);
  add_first(sums, n < 8 ? n : 8, _mm512_cvtps_pd(_mm512_castps512_ps256(front)));
  if (n > 8) add_first(sums + 8, n - 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(front, 1)));
}

NEQ_AVX512_INLINE double add_lanes(__m512d value) { return _mm512_reduce_add_pd(value); }

NEQ_AVX512_INLINE double add_lanes(__m512 value) {
  return add_lanes(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(value)),
                                 _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))));
}

NEQ_AVX512_INLINE __m256i load256(const void* source) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(source));
}

// kSummands elements become a vector of them, a group's kVectors. accumulate() adds those of a
// group to its totals, lane by lane; spread() adds the totals of its active lanes to their sums.
struct Float32 : Float {
  using Vector = __m512;
  static constexpr neq_dtype kDtype = NEQ_F32;
  static constexpr int64_t kSummands = 16;
  static constexpr int64_t kVectors = 1;
  NEQ_AVX512_INLINE static void accumulate(__m512* totals, __m512i lanes) {
    totals[0] = _mm512_add_ps(totals[0], _mm512_castsi512_ps(lanes));
  }
  NEQ_AVX512_INLINE static void spread(double* sums, Group group, const __m512* totals) {
    add_lanes_of(sums + group.target, group.lanes, totals[0]);
  }
  NEQ_AVX512_INLINE static __m512 summands(const float* source) { return _mm512_loadu_ps(source); }
  NEQ_AVX512_INLINE static __m512 keep_last(__m512 value, int64_t n) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(~first(16 - n)), value);
  }
  NEQ_AVX512_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

struct Float64 : Double {
  using Vector = __m512d;
  static constexpr neq_dtype kDtype = NEQ_F64;
  static constexpr int64_t kSummands = 8;
  static constexpr int64_t kVectors = 1;
  NEQ_AVX512_INLINE static void accumulate(__m512d* totals, __m512i lanes) {
    totals[0] = _mm512_add_pd(totals[0], _mm512_castsi512_pd(lanes));
  }
  NEQ_AVX512_INLINE static void spread(double* sums, Group group, const __m512d* totals) {
    add_lanes_of(sums + group.target, group.lanes, totals[0]);
  }
  NEQ_AVX512_INLINE static __m512d summands(const double* source) {
    return _mm512_loadu_pd(source);
  }
  NEQ_AVX512_INLINE static __m512d keep_last(__m512d value, int64_t n) {
    return _mm512_maskz_mov_pd(static_cast<__mmask8>(~first(8 - n)), value);
  }
  NEQ_AVX512_INLINE static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
};

template <class Element>
struct Narrow {
  using Vector = __m512;
  static constexpr int64_t kSummands = 16;
  static constexpr int64_t kVectors = 2;
  NEQ_AVX512_INLINE static void accumulate(__m512* totals, __m512i lanes) {
    const __m512 low = Element::widen(_mm512_castsi512_si256(lanes));
    const __m512 high = Element::widen(_mm512_extracti64x4_epi64(lanes, 1));
    totals[0] = _mm512_add_ps(totals[0], low);
    totals[1] = _mm512_add_ps(totals[1], high);
  }
  NEQ_AVX512_INLINE static void spread(double* sums, Group group, const __m512* totals) {
    add_lanes_of(sums + group.target, group.lanes & 0xffff, totals[0]);
    add_lanes_of(sums + group.middle, group.lanes >> 16, totals[1]);
  }
  NEQ_AVX512_INLINE static __m512 summands(const uint16_t* source) {
    return Element::widen(load256(source));
  }
  NEQ_AVX512_INLINE static __m512 keep_last(__m512 value, int64_t n) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(~first(16 - n)), value);
  }
  NEQ_AVX512_INLINE static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

struct Float16 : Half, Narrow<Float16> {
  static constexpr neq_dtype kDtype = NEQ_F16;
  NEQ_AVX512_INLINE static __m512 widen(__m256i narrow) { return _mm512_cvtph_ps(narrow); }
};

struct Brain16 : BFloat16, Narrow<Brain16> {
  static constexpr neq_dtype kDtype = NEQ_BF16;
  NEQ_AVX512_INLINE static __m512 widen(__m256i narrow) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
};

// Moves a row's groups, and adds them lane by lane to `totals` if kSums. Unless kExact, whole
// vectors are read and written.
template <class Element, bool kSums, bool kExact>
NEQ_AVX512_INLINE void move_groups(typename Element::Storage* target,
                                   const typename Element::Storage* source, const Group* groups,
                                   int64_t count, typename Element::Vector* totals) {
  using Vector = Lanes<typename Element::Storage>;
  using Mask = typename Vector::Mask;
  for (int64_t g = 0; g < count; ++g) {
    const Group group = groups[g];
    const auto active = static_cast<Mask>(group.lanes);
    prefetch_ahead(source + group.source);
    const __m512i lanes = kExact ? Vector::load(active, source + group.source)
                                 : _mm512_loadu_si512(source + group.source);
    const __m512i moved = Vector::compress(active, lanes);
    if (kExact) {
      const auto front = static_cast<Mask>(first(__builtin_popcount(group.lanes)));
      Vector::store(target + group.target, front, moved);
    } else {
      _mm512_storeu_si512(target + group.target, moved);
    }
    if (kSums) Element::accumulate(totals + g * Element::kVectors, lanes);
  }
}

// Few active channels are gathered here first: many small stores into memory that is not in the
// cache yet would fill the processor's queue of stores, and it could not read on.
constexpr int64_t kStageBytes = 16384;

// At how many rows a time they are: 0 where they go straight to their place.
template <class Storage>
int64_t staged_rows(char* const* targets, int64_t rows, const RowPlan& plan) noexcept {
  const int64_t row_bytes = plan.merged * plan.width * sizeof(Storage);
  const bool contiguous = targets[rows - 1] - targets[0] == (rows - 1) * row_bytes;
  const bool few = 4 * plan.count <= 3 * plan.channels && 2 * row_bytes <= kStageBytes;
  return contiguous && few ? kStageBytes / row_bytes : 0;
}

template <class Storage>
NEQ_AVX512_INLINE void zero_padding(char* target, const RowPlan& plan) {
  if (plan.count == plan.width) return;
  auto* row = reinterpret_cast<Storage*>(target);
  for (int64_t m = 0; m < plan.merged; ++m, row += plan.width) {
    std::memset(row + plan.count, 0, (plan.width - plan.count) * sizeof(Storage));
  }
}

// Moves `rows` rows, of which the last `exact` must not spill.
template <class Element, bool kSums>
NEQ_AVX512_INLINE void move_rows(char* const* targets, const char* const* sources, int64_t rows,
                                 int64_t exact, const Group* groups, int64_t count,
                                 typename Element::Vector* totals) {
  using Storage = typename Element::Storage;
  for (int64_t r = 0; r < rows; ++r) {
    auto* target = reinterpret_cast<Storage*>(targets[r]);
    const auto* source = reinterpret_cast<const Storage*>(sources[r]);
    if (r < rows - exact) {
      move_groups<Element, kSums, false>(target, source, groups, count, totals);
    } else {
      move_groups<Element, kSums, true>(target, source, groups, count, totals);
    }
  }
}

// Adds the columns of `rows` staged rows, each `merged` times `width` long, to their sums.
template <class Element>
NEQ_AVX512_INLINE void add_staged(double* sums, const char* stage, int64_t rows,
                                  const RowPlan& plan) {
  using Storage = typename Element::Storage;
  constexpr int64_t kLanes = Element::kSummands;
  constexpr int64_t kColumns = kStageBytes / 2 / sizeof(Storage);
  typename Element::Sum totals[kColumns + 4 * kLanes];
  const int64_t columns = plan.merged * plan.width;
  const auto* staged = reinterpret_cast<const Storage*>(stage);
  for (int64_t i = 0; i < columns; i += 4 * kLanes) {
    typename Element::Vector sum[4] = {};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < 4; ++v) {
        sum[v] = Element::add(sum[v], Element::summands(staged + r * columns + i + v * kLanes));
      }
    }
    std::memcpy(totals + i, sum, sizeof sum);
  }
  for (int64_t m = 0; m < plan.merged; ++m) {
    for (int64_t i = 0; i < plan.count; ++i) sums[i] += totals[m * plan.width + i];
  }
}

template <class Element>
NEQ_AVX512_INLINE void pack_staged(double* sums, char* const* targets, const char* const* sources,
                                   int64_t rows, int64_t exact, int64_t staged,
                                   const RowPlan& plan) {
  using Storage = typename Element::Storage;
  const int64_t row_bytes = plan.merged * plan.width * sizeof(Storage);
  // Spilling, and reading whole vectors of columns, ends within.
  alignas(64) char stage[kStageBytes + 4 * 64];
  char* places[kMaxRows];
  for (int64_t r = 0; r < staged && r < rows; ++r) places[r] = stage + r * row_bytes;
  for (int64_t r = 0; r < rows; r += staged) {
    const int64_t here = rows - r < staged ? rows - r : staged;
    const int64_t last = r + here - (rows - exact);
    move_rows<Element, false>(places, sources + r, here,
                              last < 0      ? 0
                              : last < here ? last
                                            : here,
                              plan.groups, plan.group_count * plan.merged, nullptr);
    for (int64_t k = 0; k < here; ++k) zero_padding<Storage>(places[k], plan);
    std::memcpy(targets[r], stage, here * row_bytes);
    if (sums) add_staged<Element>(sums, stage, here, plan);
  }
}

// Rows and their sums in one go, so that memory never waits for sums: those are taken of all lanes
// as they come, and the active ones sorted out at the end. Of wide rows, a part at a time that
// leaves the first cache room.
template <class Element, bool kSums>
NEQ_AVX512_INLINE void pack_groups(double* sums, char* const* targets, const char* const* sources,
                                   int64_t rows, int64_t exact, const RowPlan& plan) {
  using Storage = typename Element::Storage;
  constexpr int64_t kGroups = 8192 / 64 / Element::kVectors;
  typename Element::Vector totals[kSums ? kGroups * Element::kVectors : 1];
  const int64_t all = plan.group_count * plan.merged;
  for (int64_t g = 0; g < all; g += kGroups) {
    const int64_t count = all - g < kGroups ? all - g : kGroups;
    if (kSums) std::memset(totals, 0, count * Element::kVectors * sizeof totals[0]);
    move_rows<Element, kSums>(targets, sources, rows, exact, plan.groups + g, count, totals);
    for (int64_t k = 0; kSums && k < count; ++k) {
      const int64_t row = (g + k) / plan.group_count;
      Element::spread(sums - row * plan.width, plan.groups[g + k], totals + k * Element::kVectors);
    }
  }
  for (int64_t r = 0; r < rows; ++r) zero_padding<Storage>(targets[r], plan);
}

template <class Element>
NEQ_AVX512 void pack_rows(double* sums, char* const* targets, const char* const* sources,
                          int64_t rows, int64_t exact, const RowPlan& shared) {
  const RowPlan plan = shared;  // a copy that the stores below cannot be suspected to change
  if (plan.channels < kGroup<typename Element::Storage> && plan.merged == 1) exact = rows;
  if (const int64_t staged = staged_rows<typename Element::Storage>(targets, rows, plan)) {
    pack_staged<Element>(sums, targets, sources, rows, exact, staged, plan);
  } else if (sums) {
    pack_groups<Element, true>(sums, targets, sources, rows, exact, plan);
  } else {
    pack_groups<Element, false>(nullptr, targets, sources, rows, exact, plan);
  }
}

template <class Element>
NEQ_AVX512 double copy_run(char* to, const char* from, int64_t n) {
  using Storage = typename Element::Storage;
  constexpr int64_t kLanes = Element::kSummands;
  constexpr int64_t kWhole = kGroup<Storage>;
  auto* target = reinterpret_cast<Storage*>(to);
  const auto* source = reinterpret_cast<const Storage*>(from);
  if (n < kWhole) return scalar_kernels(Element::kDtype).copy_run(to, from, n);
  typename Element::Vector sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
    for (int64_t at = 0; at < 4 * kLanes; at += kWhole) {
      _mm512_storeu_si512(target + k + at, _mm512_loadu_si512(source + k + at));
    }
    for (int64_t part = 0; part < 4; ++part) {
      sums[part] = Element::add(sums[part], Element::summands(source + k + part * kLanes));
    }
  }
  for (int64_t at = k; at + kWhole <= n; at += kWhole) {
    _mm512_storeu_si512(target + at, _mm512_loadu_si512(source + at));
  }
  for (int64_t part = 0; k + kLanes <= n; k += kLanes, ++part) {
    sums[part] = Element::add(sums[part], Element::summands(source + k));
  }
  // The last vector overlaps the one before it; lanes already counted count as zero.
  _mm512_storeu_si512(target + n - kWhole, _mm512_loadu_si512(source + n - kWhole));
  const auto last = Element::keep_last(Element::summands(source + n - kLanes), n - k);
  sums[3] = Element::add(sums[3], last);
  return add_lanes(Element::add(Element::add(sums[0], sums[1]), Element::add(sums[2], sums[3])));
}

template <class Element>
const Kernels& kernels() noexcept {
  static const Kernels table = {kGroup<typename Element::Storage>,
                                1,
                                1,
                                scalar_kernels(Element::kDtype).copy_rows,
                                scalar_kernels(Element::kDtype).add_rows,
                                pack_rows<Element>,
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
