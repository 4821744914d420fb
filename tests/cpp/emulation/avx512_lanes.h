// The rest of avx512.h: what compares, converts, moves lanes about or adds them up.
#pragma once

namespace neq {

// Comparisons, to masks.
#define NEQ_COMPARE(Name, Suffix, Vector, Element, Mask, expression)                \
  NEQ_EMULATED Mask _mm512_##Name##_##Suffix##_mask(Vector first, Vector second) {  \
    const auto left = emulated::Lanes<Vector, Element>::of(first);                  \
    const auto right = emulated::Lanes<Vector, Element>::of(second);                \
    Mask mask = 0;                                                                  \
    for (int i = 0; i < left.kCount; ++i) {                                         \
      const Element a = left.at[i];                                                 \
      const Element b = right.at[i];                                                \
      if (expression) mask = static_cast<Mask>(mask | Mask{1} << i);                \
    }                                                                               \
    return mask;                                                                    \
  }                                                                                 \
  NEQ_EMULATED Mask _mm512_mask_##Name##_##Suffix##_mask(Mask within, Vector first, \
                                                         Vector second) {           \
    return within & _mm512_##Name##_##Suffix##_mask(first, second);                 \
  }
#define NEQ_COMPARES(Suffix, Vector, Element, Mask)          \
  NEQ_COMPARE(cmpeq, Suffix, Vector, Element, Mask, a == b)  \
  NEQ_COMPARE(cmpneq, Suffix, Vector, Element, Mask, a != b) \
  NEQ_COMPARE(cmplt, Suffix, Vector, Element, Mask, a < b)   \
  NEQ_COMPARE(cmple, Suffix, Vector, Element, Mask, a <= b)
#define NEQ_ORDER(Suffix, Element, Mask)                    \
  NEQ_COMPARES(Suffix, __m512i, Element, Mask)              \
  NEQ_COMPARE(cmpgt, Suffix, __m512i, Element, Mask, a > b) \
  NEQ_COMPARE(cmpge, Suffix, __m512i, Element, Mask, a >= b)
NEQ_COMPARES(ps, __m512, float, __mmask16)
NEQ_COMPARES(pd, __m512d, double, __mmask8)
NEQ_ORDER(epi8, int8_t, __mmask64)
NEQ_ORDER(epu8, uint8_t, __mmask64)
NEQ_ORDER(epi16, int16_t, __mmask32)
NEQ_ORDER(epi32, int32_t, __mmask16)
NEQ_ORDER(epi64, int64_t, __mmask8)
NEQ_COMPARE(test, epi8, __m512i, int8_t, __mmask64, a& b)
NEQ_COMPARE(test, epi16, __m512i, int16_t, __mmask32, a& b)
NEQ_COMPARE(test, epi32, __m512i, int32_t, __mmask16, a& b)
#undef NEQ_COMPARE
#undef NEQ_COMPARES
#undef NEQ_ORDER

namespace emulated {

template <class Element>
NEQ_EMULATED bool compare(Element a, Element b, int how) {
  const bool unordered = a != a || b != b;
  switch (how & 15) {  // beyond are the same, signalling where these are quiet
    case _CMP_EQ_OQ:
      return a == b;
    case _CMP_LT_OS:
      return a < b;
    case _CMP_LE_OS:
      return a <= b;
    case _CMP_UNORD_Q:
      return unordered;
    case _CMP_NEQ_UQ:
      return a != b;
    case _CMP_NLT_US:
      return !(a < b);
    case _CMP_NLE_US:
      return !(a <= b);
    case _CMP_ORD_Q:
      return !unordered;
    case _CMP_EQ_UQ:
      return unordered || a == b;
    case _CMP_NGE_US:
      return !(a >= b);
    case _CMP_NGT_US:
      return !(a > b);
    case _CMP_NEQ_OQ:
      return !unordered && a != b;
    case _CMP_GE_OS:
      return a >= b;
    case _CMP_GT_OS:
      return a > b;
    case _CMP_TRUE_UQ:
      return true;
  }
  return false;
}

}  // namespace emulated

#define NEQ_COMPARE(Suffix, Vector, Element, Mask)                                            \
  NEQ_EMULATED Mask _mm512_cmp_##Suffix##_mask(Vector first, Vector second, int how) {        \
    const auto a = emulated::Lanes<Vector, Element>::of(first);                               \
    const auto b = emulated::Lanes<Vector, Element>::of(second);                              \
    Mask mask = 0;                                                                            \
    for (int i = 0; i < a.kCount; ++i) {                                                      \
      if (emulated::compare(a.at[i], b.at[i], how)) mask = static_cast<Mask>(mask | 1 << i);  \
    }                                                                                         \
    return mask;                                                                              \
  }                                                                                           \
  NEQ_EMULATED Mask _mm512_mask_cmp_##Suffix##_mask(Mask within, Vector first, Vector second, \
                                                    int how) {                                \
    return within & _mm512_cmp_##Suffix##_mask(first, second, how);                           \
  }
NEQ_COMPARE(ps, __m512, float, __mmask16)
NEQ_COMPARE(pd, __m512d, double, __mmask8)
#undef NEQ_COMPARE

// Conversions of every lane; narrowing integers drops the upper bits.
#define NEQ_CONVERT(Name, From, FromElement, To, ToElement, expression) \
  NEQ_EMULATED To _mm512_##Name(From value) {                           \
    const auto from = emulated::Lanes<From, FromElement>::of(value);    \
    emulated::Lanes<To, ToElement> to;                                  \
    for (int i = 0; i < to.kCount; ++i) {                               \
      const FromElement a = from.at[i];                                 \
      to.at[i] = static_cast<ToElement>(expression);                    \
    }                                                                   \
    return to;                                                          \
  }
NEQ_CONVERT(cvtps_pd, __m256, float, __m512d, double, a)
NEQ_CONVERT(cvtpd_ps, __m512d, double, __m256, float, a)
NEQ_CONVERT(cvtph_ps, __m256i, uint16_t, __m512, float, _cvtsh_ss(a))
NEQ_CONVERT(cvtepi8_epi32, __m128i, int8_t, __m512i, int32_t, a)
NEQ_CONVERT(cvtepu8_epi32, __m128i, uint8_t, __m512i, int32_t, a)
NEQ_CONVERT(cvtepi16_epi32, __m256i, int16_t, __m512i, int32_t, a)
NEQ_CONVERT(cvtepu16_epi32, __m256i, uint16_t, __m512i, int32_t, a)
NEQ_CONVERT(cvtepi32_epi64, __m256i, int32_t, __m512i, int64_t, a)
NEQ_CONVERT(cvtepi32_epi8, __m512i, int32_t, __m128i, int8_t, a)
NEQ_CONVERT(cvtepi32_epi16, __m512i, int32_t, __m256i, int16_t, a)
NEQ_CONVERT(cvtepi64_epi32, __m512i, int64_t, __m256i, int32_t, a)
NEQ_CONVERT(cvtepi32_ps, __m512i, int32_t, __m512, float, a)
NEQ_CONVERT(cvtepi32_pd, __m256i, int32_t, __m512d, double, a)
#undef NEQ_CONVERT

NEQ_EMULATED __m256i _mm512_cvtps_ph(__m512 value, int) {
  const auto from = emulated::Lanes<__m512, float>::of(value);
  emulated::Lanes<__m256i, uint16_t> to;
  for (int i = 0; i < to.kCount; ++i) {
    to.at[i] = _cvtss_sh(from.at[i], _MM_FROUND_TO_NEAREST_INT);
  }
  return to;
}

// Casts. What a widening one leaves undefined is filled with ones, NaN as a number.
#define NEQ_CAST(Name, From, To) \
  NEQ_EMULATED To _mm512_##Name(From value) { return emulated::cast<To>(value); }
NEQ_CAST(castps_pd, __m512, __m512d)
NEQ_CAST(castps_si512, __m512, __m512i)
NEQ_CAST(castpd_ps, __m512d, __m512)
NEQ_CAST(castpd_si512, __m512d, __m512i)
NEQ_CAST(castsi512_ps, __m512i, __m512)
NEQ_CAST(castsi512_pd, __m512i, __m512d)
#undef NEQ_CAST

#define NEQ_HALVES(Narrow, Wide, narrow, wide, extract, insert)                \
  NEQ_EMULATED Narrow _mm512_cast##wide##_##narrow(Wide value) {               \
    Narrow half;                                                               \
    std::memcpy(&half, &value, sizeof half);                                   \
    return half;                                                               \
  }                                                                            \
  NEQ_EMULATED Wide _mm512_zext##narrow##_##wide(Narrow value) {               \
    Wide whole = {};                                                           \
    std::memcpy(&whole, &value, sizeof value);                                 \
    return whole;                                                              \
  }                                                                            \
  NEQ_EMULATED Wide _mm512_cast##narrow##_##wide(Narrow value) {               \
    Wide whole;                                                                \
    std::memset(&whole, 0xff, sizeof whole);                                   \
    std::memcpy(&whole, &value, sizeof value);                                 \
    return whole;                                                              \
  }                                                                            \
  NEQ_EMULATED Narrow _mm512_##extract(Wide value, int part) {                 \
    Narrow half;                                                               \
    std::memcpy(&half, reinterpret_cast<const char*>(&value) + part * 32, 32); \
    return half;                                                               \
  }                                                                            \
  NEQ_EMULATED Wide _mm512_##insert(Wide whole, Narrow half, int part) {       \
    std::memcpy(reinterpret_cast<char*>(&whole) + part * 32, &half, 32);       \
    return whole;                                                              \
  }
NEQ_HALVES(__m256, __m512, ps256, ps512, extractf32x8_ps, insertf32x8)
NEQ_HALVES(__m256d, __m512d, pd256, pd512, extractf64x4_pd, insertf64x4)
NEQ_HALVES(__m256i, __m512i, si256, si512, extracti64x4_epi64, inserti64x4)
#undef NEQ_HALVES

NEQ_EMULATED __m128 _mm512_extractf32x4_ps(__m512 value, int part) {
  __m128 quarter;
  std::memcpy(&quarter, reinterpret_cast<const char*>(&value) + part * 16, sizeof quarter);
  return quarter;
}
NEQ_EMULATED __m128i _mm512_extracti32x4_epi32(__m512i value, int part) {
  return emulated::cast<__m128i>(_mm512_extractf32x4_ps(emulated::cast<__m512>(value), part));
}

// Permutations by a vector of lane numbers, of which the low bits count.
#define NEQ_PERMUTE(Suffix, Vector, Element, Index, Mask)                                         \
  NEQ_EMULATED Vector _mm512_permutex2var_##Suffix(Vector first, __m512i lanes, Vector second) {  \
    const auto a = emulated::Lanes<Vector, Element>::of(first);                                   \
    const auto b = emulated::Lanes<Vector, Element>::of(second);                                  \
    const auto index = emulated::Lanes<__m512i, Index>::of(lanes);                                \
    emulated::Lanes<Vector, Element> to;                                                          \
    constexpr int kCount = to.kCount;                                                             \
    for (int i = 0; i < kCount; ++i) {                                                            \
      const int lane = static_cast<int>(index.at[i] & (kCount - 1));                              \
      to.at[i] = index.at[i] & kCount ? b.at[lane] : a.at[lane];                                  \
    }                                                                                             \
    return to;                                                                                    \
  }                                                                                               \
  NEQ_EMULATED Vector _mm512_permutexvar_##Suffix(__m512i lanes, Vector value) {                  \
    return _mm512_permutex2var_##Suffix(value, lanes, value);                                     \
  }                                                                                               \
  NEQ_EMULATED Vector _mm512_maskz_permutexvar_##Suffix(Mask mask, __m512i lanes, Vector value) { \
    return _mm512_maskz_mov_##Suffix(mask, _mm512_permutexvar_##Suffix(lanes, value));            \
  }
NEQ_PERMUTE(ps, __m512, float, int32_t, __mmask16)
NEQ_PERMUTE(pd, __m512d, double, int64_t, __mmask8)
NEQ_PERMUTE(epi16, __m512i, int16_t, int16_t, __mmask32)
NEQ_PERMUTE(epi32, __m512i, int32_t, int32_t, __mmask16)
NEQ_PERMUTE(epi64, __m512i, int64_t, int64_t, __mmask8)
#undef NEQ_PERMUTE

NEQ_EMULATED __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h,
                                       int i, int j, int k, int l, int m, int n, int o, int p) {
  const emulated::Lanes<__m512i, int32_t> to = {{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p}};
  return to;
}
NEQ_EMULATED __m512i _mm512_setr_epi64(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e,
                                       int64_t f, int64_t g, int64_t h) {
  const emulated::Lanes<__m512i, int64_t> to = {{a, b, c, d, e, f, g, h}};
  return to;
}

// Gathers; `scale` in bytes.
#define NEQ_GATHER(Suffix, Vector, Element, Index, Mask)                                         \
  NEQ_EMULATED Vector _mm512_mask_i32gather_##Suffix(Vector other, Mask mask, Index places,      \
                                                     const void* base, int scale) {              \
    auto to = emulated::Lanes<Vector, Element>::of(other);                                       \
    const auto place = emulated::Lanes<Index, int32_t>::of(places);                              \
    for (int i = 0; i < to.kCount; ++i) {                                                        \
      if (!emulated::has(mask, i)) continue;                                                     \
      const auto* from = static_cast<const char*>(base) + int64_t{place.at[i]} * scale;          \
      std::memcpy(&to.at[i], from, sizeof(Element));                                             \
    }                                                                                            \
    return to;                                                                                   \
  }                                                                                              \
  NEQ_EMULATED Vector _mm512_i32gather_##Suffix(Index places, const void* base, int scale) {     \
    return _mm512_mask_i32gather_##Suffix(Vector{}, static_cast<Mask>(-1), places, base, scale); \
  }
NEQ_GATHER(ps, __m512, float, __m512i, __mmask16)
NEQ_GATHER(pd, __m512d, double, __m256i, __mmask8)
NEQ_GATHER(epi32, __m512i, int32_t, __m512i, __mmask16)
#undef NEQ_GATHER

// Reductions: halves onto each other, down to one lane.
#define NEQ_REDUCE(Name, Suffix, Vector, Element, expression)          \
  NEQ_EMULATED Element _mm512_reduce_##Name##_##Suffix(Vector value) { \
    auto lanes = emulated::Lanes<Vector, Element>::of(value);          \
    for (int half = lanes.kCount / 2; half; half /= 2) {               \
      for (int i = 0; i < half; ++i) {                                 \
        const Element a = lanes.at[i];                                 \
        const Element b = lanes.at[i + half];                          \
        lanes.at[i] = expression;                                      \
      }                                                                \
    }                                                                  \
    return lanes.at[0];                                                \
  }
NEQ_REDUCE(add, ps, __m512, float, a + b)
NEQ_REDUCE(add, pd, __m512d, double, a + b)
NEQ_REDUCE(add, epi32, __m512i, int32_t, a + b)
NEQ_REDUCE(add, epi64, __m512i, int64_t, a + b)
NEQ_REDUCE(max, ps, __m512, float, a > b ? a : b)
NEQ_REDUCE(max, pd, __m512d, double, a > b ? a : b)
#undef NEQ_REDUCE

}  // namespace neq
