// The AVX-512 loops of pack_channels. A row is compacted by the instruction made for it, in
// registers: compressing straight to memory is slow on Zen 4 and later. Whole vectors are stored,
// the next one overwriting what was too much. Masks take care of the ends and of nothing else: a
// masked load keeps the processor from streaming ahead, and halves the speed (Zen 5).
//
// Rows are written one after the other, and their sums taken on the way: a second pass over them,
// or a second row at a time, costs more than it saves.
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
  if (n == 0) return;
  const __m512 front = _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), value);
  add_first(sums, n < 8 ? n : 8, _mm512_cvtps_pd(_mm512_castps512_ps256(front)));
  if (n > 8) add_first(sums + 8, n - 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(front, 1)));
}

NEQ_AVX512_INLINE __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
NEQ_AVX512_INLINE __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }

NEQ_AVX512_INLINE double add_lanes(__m512d value) { return _mm512_reduce_add_pd(value); }

NEQ_AVX512_INLINE double add_lanes(__m512 value) {
  return add_lanes(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(value)),
                                 _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))));
}

// 64 bytes of elements become kVectors vectors of summands, which accumulate() adds lane by lane to
// the totals; spread() adds the totals of a group's active lanes to their sums.
struct Float32 : Float {
  using Vector = __m512;
  static constexpr neq_dtype kDtype = NEQ_F32;
  static constexpr int64_t kVectors = 1;
  NEQ_AVX512_INLINE static void accumulate(__m512* totals, __m512i lanes) {
    totals[0] = _mm512_add_ps(totals[0], _mm512_castsi512_ps(lanes));
  }
  NEQ_AVX512_INLINE static void spread(double* sums, Group group, const __m512* totals) {
    add_lanes_of(sums + group.target, group.lanes, totals[0]);
  }
};

struct Float64 : Double {
  using Vector = __m512d;
  static constexpr neq_dtype kDtype = NEQ_F64;
  static constexpr int64_t kVectors = 1;
  NEQ_AVX512_INLINE static void accumulate(__m512d* totals, __m512i lanes) {
    totals[0] = _mm512_add_pd(totals[0], _mm512_castsi512_pd(lanes));
  }
  NEQ_AVX512_INLINE static void spread(double* sums, Group group, const __m512d* totals) {
    add_lanes_of(sums + group.target, group.lanes, totals[0]);
  }
};

template <class Element>
struct Narrow {
  using Vector = __m512;
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
    prefetch_target(target + group.target);
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

template <class Storage>
NEQ_AVX512_INLINE void zero_padding(char* target, const RowPlan& plan) {
  if (plan.count == plan.width) return;
  auto* row = reinterpret_cast<Storage*>(target);
  for (int64_t m = 0; m < plan.merged; ++m, row += plan.width) {
    std::memset(row + plan.count, 0, (plan.width - plan.count) * sizeof(Storage));
  }
}

// Adds the totals of `count` groups to the sums of their channels. Merged rows, which are short and
// all among them, become one first.
template <class Element>
NEQ_AVX512_INLINE void spread_totals(double* sums, const Group* groups, int64_t count,
                                     typename Element::Vector* totals, const RowPlan& plan) {
  const int64_t row = plan.merged > 1 ? plan.group_count : count;
  for (int64_t from = row; from < count; from += row) {
    for (int64_t k = 0; k < row * Element::kVectors; ++k) {
      totals[k] = add(totals[k], totals[from * Element::kVectors + k]);
    }
  }
  for (int64_t g = 0; g < row; ++g) {
    Element::spread(sums, groups[g], totals + g * Element::kVectors);
  }
}

// The first of the groups that write past a row's end, or `count`.
template <class Storage>
NEQ_AVX512_INLINE int64_t first_spilling(const Group* groups, int64_t count, int64_t end) {
  while (count > 0 && groups[count - 1].target + kGroup<Storage> > end) --count;
  return count;
}

// Rows and their sums in one go, so that memory never waits for sums: those are taken of all lanes
// as they come, and the active ones sorted out at the end. Of wide rows that are summed, a part at
// a time that leaves the first cache room; then no part may spill over a row's end, behind which
// the next row has already begun.
template <class Element, bool kSums>
NEQ_AVX512_INLINE void pack_groups(double* sums, char* const* targets, const char* const* sources,
                                   int64_t rows, int64_t exact, const RowPlan& plan) {
  using Storage = typename Element::Storage;
  constexpr int64_t kGroups = kSums ? 8192 / 64 / Element::kVectors : INT32_MAX;
  typename Element::Vector totals[kSums ? kGroups * Element::kVectors : 1];
  const int64_t all = plan.group_count * plan.merged;
  for (int64_t g = 0; g < all; g += kGroups) {
    const Group* groups = plan.groups + g;
    const int64_t count = all - g < kGroups ? all - g : kGroups;
    const int64_t whole =
        count == all ? all : first_spilling<Storage>(groups, count, plan.merged * plan.width);
    if (kSums) std::memset(totals, 0, count * Element::kVectors * sizeof totals[0]);
    for (int64_t r = 0; r < rows; ++r) {
      auto* target = reinterpret_cast<Storage*>(targets[r]);
      const auto* source = reinterpret_cast<const Storage*>(sources[r]);
      const int64_t spilling = r < rows - exact ? whole : 0;
      move_groups<Element, kSums, false>(target, source, groups, spilling, totals);
      move_groups<Element, kSums, true>(target, source, groups + spilling, count - spilling,
                                        totals + (kSums ? spilling * Element::kVectors : 0));
    }
    if (kSums) spread_totals<Element>(sums, groups, count, totals, plan);
  }
  for (int64_t r = 0; r < rows; ++r) zero_padding<Storage>(targets[r], plan);
}

template <class Element>
NEQ_AVX512 void pack_rows(double* sums, char* const* targets, const char* const* sources,
                          int64_t rows, int64_t exact, const RowPlan& shared) {
  const RowPlan plan = shared;  // a copy that the stores below cannot be suspected to change
  if (plan.channels < kGroup<typename Element::Storage> && plan.merged == 1) exact = rows;
  if (sums) {
    pack_groups<Element, true>(sums, targets, sources, rows, exact, plan);
  } else {
    pack_groups<Element, false>(nullptr, targets, sources, rows, exact, plan);
  }
}

// Moves 64 bytes, and asks for one line: spread like this, asking costs no time of its own.
template <class Element, bool kSum>
NEQ_AVX512_INLINE void move_vector(char* target, const char* source, const char* ahead,
                                   typename Element::Vector* totals) {
  __builtin_prefetch(ahead);
  const __m512i lanes = _mm512_loadu_si512(source);
  _mm512_storeu_si512(target, lanes);
  if (kSum) Element::accumulate(totals, lanes);
}

// Copies `bytes`, at least 64, asks for as many from `ahead` on, and returns the sum if kSum.
template <class Element, bool kSum>
NEQ_AVX512_INLINE double copy_run(char* target, const char* source, const char* ahead,
                                  int64_t bytes) {
  constexpr int64_t kParts = 4 / Element::kVectors;
  typename Element::Vector totals[4] = {};
  int64_t at = 0;
  for (; at + kParts * 64 <= bytes; at += kParts * 64) {
    for (int64_t part = 0; part < kParts; ++part) {
      const int64_t here = at + part * 64;
      move_vector<Element, kSum>(target + here, source + here, ahead + here,
                                 totals + part * Element::kVectors);
    }
  }
  for (; at + 64 <= bytes; at += 64) {
    move_vector<Element, kSum>(target + at, source + at, ahead + at, totals);
  }
  __builtin_prefetch(ahead + bytes - 1);
  if (at < bytes) {
    // The last vector overlaps the one before it; lanes already counted count as zero.
    __builtin_prefetch(ahead + at);
    const __m512i lanes = _mm512_loadu_si512(source + bytes - 64);
    _mm512_storeu_si512(target + bytes - 64, lanes);
    const __mmask64 rest = ~uint64_t{0} << (64 - (bytes - at));
    if (kSum) Element::accumulate(totals, _mm512_maskz_mov_epi8(rest, lanes));
  }
  return kSum ? add_lanes(add(add(totals[0], totals[1]), add(totals[2], totals[3]))) : 0;
}

template <class Element, bool kSum>
NEQ_AVX512_INLINE void copy_all(double* sums, const Runs& shared) {
  constexpr int64_t kElement = sizeof(typename Element::Storage);
  constexpr int64_t kPart = kMaxRun * kElement;
  const Runs runs = shared;
  const int64_t bytes = runs.length * kElement;
  const RunsAhead ahead(runs, bytes);
  for (int64_t i = 0; i < runs.count; ++i) {
    char* target = runs.target + i * runs.target_step;
    const char* source = runs.source + runs.index[i] * runs.source_step;
    const char* next = ahead.of(i);
    double sum = 0;
    for (int64_t at = 0, n; at < bytes; at += n) {
      const int64_t left = bytes - at;
      n = left < kPart + 64 ? left : kPart;  // no part is shorter than a vector
      sum += copy_run<Element, kSum>(target + at, source + at, next + at, n);
    }
    if (kSum) sums[i] += sum;
  }
}

template <class Element>
NEQ_AVX512 void copy_runs(double* sums, const Runs& runs) {
  if (runs.length < kGroup<typename Element::Storage>) {
    scalar_kernels(Element::kDtype).copy_runs(sums, runs);
  } else if (sums) {
    copy_all<Element, true>(sums, runs);
  } else {
    copy_all<Element, false>(nullptr, runs);
  }
}

template <class Element>
const Kernels& kernels() noexcept {
  static const Kernels table = {kGroup<typename Element::Storage>,
                                1,
                                1,
                                scalar_kernels(Element::kDtype).copy_rows,
                                scalar_kernels(Element::kDtype).add_rows,
                                pack_rows<Element>,
                                copy_runs<Element>,
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
