// The AVX-512 intrinsics that csrc/ uses, lane by lane on a machine that has AVX2 only.
//
// They hide the real ones: inside namespace neq, a name is looked up here before it is looked up
// in <immintrin.h>. What is missing here is therefore no silent gap: the real intrinsic does not
// inline without its target and the compiler says so. Add it in the same few lines as its
// neighbours; avx512_emulation.cpp compares all of them with the processor's own, where there are.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// Compilers make macros of those with an immediate operand.
#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_mask_cmp_ps_mask
#undef _mm512_mask_cmp_pd_mask
#undef _mm512_cvtps_ph
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_slli_epi64
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _mm512_srli_epi64
#undef _mm512_srai_epi32
#undef _mm512_extractf32x4_ps
#undef _mm512_extracti32x4_epi32
#undef _mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#undef _mm512_extracti64x4_epi64
#undef _mm512_insertf32x8
#undef _mm512_insertf64x4
#undef _mm512_inserti64x4
#undef _mm512_i32gather_ps
#undef _mm512_i32gather_epi32
#undef _mm512_i32gather_pd
#undef _mm512_mask_i32gather_ps
#undef _mm512_mask_i32gather_epi32
#undef _mm512_mask_i32gather_pd

// Vectors only ever pass through functions that are inlined, and need no attribute of their type.
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"

#define NEQ_EMULATED [[gnu::target("avx2,fma,f16c"), gnu::always_inline]] inline

namespace neq {
namespace emulated {

template <class To, class From>
NEQ_EMULATED To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Element type and number of lanes of a vector, and its lanes as something to index.
template <class Vector, class Element>
struct Lanes {
  static constexpr int kCount = sizeof(Vector) / sizeof(Element);
  Element at[kCount];
  NEQ_EMULATED static Lanes of(Vector vector) { return cast<Lanes>(vector); }
  NEQ_EMULATED operator Vector() const { return cast<Vector>(*this); }
};

template <class Mask>
NEQ_EMULATED bool has(Mask mask, int lane) {
  return mask >> lane & 1;
}

}  // namespace emulated

// Memory, masks and moves: the same for every element type and width.
#define NEQ_MOVES(Prefix, Suffix, Vector, Element, Mask)                                           \
  NEQ_EMULATED Vector Prefix##_mask_mov_##Suffix(Vector other, Mask mask, Vector value) {          \
    auto to = emulated::Lanes<Vector, Element>::of(other);                                         \
    const auto from = emulated::Lanes<Vector, Element>::of(value);                                 \
    for (int i = 0; i < to.kCount; ++i) to.at[i] = emulated::has(mask, i) ? from.at[i] : to.at[i]; \
    return to;                                                                                     \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_mask_blend_##Suffix(Mask mask, Vector other, Vector value) {        \
    return Prefix##_mask_mov_##Suffix(other, mask, value);                                         \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_maskz_mov_##Suffix(Mask mask, Vector value) {                       \
    return Prefix##_mask_mov_##Suffix(Vector{}, mask, value);                                      \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_mask_loadu_##Suffix(Vector other, Mask mask, const void* source) {  \
    auto to = emulated::Lanes<Vector, Element>::of(other);                                         \
    for (int i = 0; i < to.kCount; ++i) {                                                          \
      if (emulated::has(mask, i)) {                                                                \
        std::memcpy(&to.at[i], static_cast<const char*>(source) + i * sizeof(Element),             \
                    sizeof(Element));                                                              \
      }                                                                                            \
    }                                                                                              \
    return to;                                                                                     \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_maskz_loadu_##Suffix(Mask mask, const void* source) {               \
    return Prefix##_mask_loadu_##Suffix(Vector{}, mask, source);                                   \
  }                                                                                                \
  NEQ_EMULATED void Prefix##_mask_storeu_##Suffix(void* target, Mask mask, Vector value) {         \
    const auto from = emulated::Lanes<Vector, Element>::of(value);                                 \
    for (int i = 0; i < from.kCount; ++i) {                                                        \
      if (emulated::has(mask, i)) {                                                                \
        std::memcpy(static_cast<char*>(target) + i * sizeof(Element), &from.at[i],                 \
                    sizeof(Element));                                                              \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_mask_compress_##Suffix(Vector other, Mask mask, Vector value) {     \
    auto to = emulated::Lanes<Vector, Element>::of(other);                                         \
    const auto from = emulated::Lanes<Vector, Element>::of(value);                                 \
    for (int i = 0, next = 0; i < to.kCount; ++i) {                                                \
      if (emulated::has(mask, i)) to.at[next++] = from.at[i];                                      \
    }                                                                                              \
    return to;                                                                                     \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_maskz_compress_##Suffix(Mask mask, Vector value) {                  \
    return Prefix##_mask_compress_##Suffix(Vector{}, mask, value);                                 \
  }                                                                                                \
  NEQ_EMULATED Vector Prefix##_maskz_expand_##Suffix(Mask mask, Vector value) {                    \
    emulated::Lanes<Vector, Element> to{};                                                         \
    const auto from = emulated::Lanes<Vector, Element>::of(value);                                 \
    for (int i = 0, next = 0; i < to.kCount; ++i) {                                                \
      if (emulated::has(mask, i)) to.at[i] = from.at[next++];                                      \
    }                                                                                              \
    return to;                                                                                     \
  }

NEQ_MOVES(_mm512, ps, __m512, float, __mmask16)
NEQ_MOVES(_mm512, pd, __m512d, double, __mmask8)
NEQ_MOVES(_mm512, epi8, __m512i, int8_t, __mmask64)
NEQ_MOVES(_mm512, epi16, __m512i, int16_t, __mmask32)
NEQ_MOVES(_mm512, epi32, __m512i, int32_t, __mmask16)
NEQ_MOVES(_mm512, epi64, __m512i, int64_t, __mmask8)
NEQ_MOVES(_mm256, ps, __m256, float, __mmask8)
NEQ_MOVES(_mm256, pd, __m256d, double, __mmask8)
NEQ_MOVES(_mm256, epi8, __m256i, int8_t, __mmask32)
NEQ_MOVES(_mm256, epi16, __m256i, int16_t, __mmask16)
NEQ_MOVES(_mm256, epi32, __m256i, int32_t, __mmask8)
NEQ_MOVES(_mm256, epi64, __m256i, int64_t, __mmask8)
NEQ_MOVES(_mm, epi16, __m128i, int16_t, __mmask8)
NEQ_MOVES(_mm, epi32, __m128i, int32_t, __mmask8)
#undef NEQ_MOVES

#define NEQ_WHOLE(Name, Vector)                                        \
  NEQ_EMULATED Vector _mm512_loadu_##Name(const void* source) {        \
    Vector value;                                                      \
    std::memcpy(&value, source, sizeof value);                         \
    return value;                                                      \
  }                                                                    \
  NEQ_EMULATED Vector _mm512_load_##Name(const void* source) {         \
    return *static_cast<const Vector*>(source);                        \
  }                                                                    \
  NEQ_EMULATED void _mm512_storeu_##Name(void* target, Vector value) { \
    std::memcpy(target, &value, sizeof value);                         \
  }                                                                    \
  NEQ_EMULATED void _mm512_store_##Name(void* target, Vector value) {  \
    *static_cast<Vector*>(target) = value;                             \
  }                                                                    \
  NEQ_EMULATED void _mm512_stream_##Name(void* target, Vector value) { \
    *static_cast<Vector*>(target) = value;                             \
  }                                                                    \
  NEQ_EMULATED Vector _mm512_setzero_##Name() { return Vector{}; }

NEQ_WHOLE(ps, __m512)
NEQ_WHOLE(pd, __m512d)
NEQ_WHOLE(si512, __m512i)
#undef NEQ_WHOLE

// Lane by lane, with the masked forms.
#define NEQ_ONE(Name, Suffix, Vector, Element, Mask, expression)                \
  NEQ_EMULATED Vector _mm512_##Name##_##Suffix(Vector value) {                  \
    auto to = emulated::Lanes<Vector, Element>::of(value);                      \
    for (Element& a : to.at) a = expression;                                    \
    return to;                                                                  \
  }                                                                             \
  NEQ_EMULATED Vector _mm512_maskz_##Name##_##Suffix(Mask mask, Vector value) { \
    return _mm512_maskz_mov_##Suffix(mask, _mm512_##Name##_##Suffix(value));    \
  }
#define NEQ_TWO(Name, Suffix, Vector, Element, Mask, expression)                               \
  NEQ_EMULATED Vector _mm512_##Name##_##Suffix(Vector first, Vector second) {                  \
    auto to = emulated::Lanes<Vector, Element>::of(first);                                     \
    const auto other = emulated::Lanes<Vector, Element>::of(second);                           \
    for (int i = 0; i < to.kCount; ++i) {                                                      \
      const Element a = to.at[i];                                                              \
      const Element b = other.at[i];                                                           \
      to.at[i] = expression;                                                                   \
    }                                                                                          \
    return to;                                                                                 \
  }                                                                                            \
  NEQ_EMULATED Vector _mm512_mask_##Name##_##Suffix(Vector other, Mask mask, Vector first,     \
                                                    Vector second) {                           \
    return _mm512_mask_mov_##Suffix(other, mask, _mm512_##Name##_##Suffix(first, second));     \
  }                                                                                            \
  NEQ_EMULATED Vector _mm512_maskz_##Name##_##Suffix(Mask mask, Vector first, Vector second) { \
    return _mm512_maskz_mov_##Suffix(mask, _mm512_##Name##_##Suffix(first, second));           \
  }
#define NEQ_FMA(Name, Suffix, Vector, Element, Mask, expression)                                  \
  NEQ_EMULATED Vector _mm512_##Name##_##Suffix(Vector first, Vector second, Vector third) {       \
    auto to = emulated::Lanes<Vector, Element>::of(first);                                        \
    const auto factor = emulated::Lanes<Vector, Element>::of(second);                             \
    const auto term = emulated::Lanes<Vector, Element>::of(third);                                \
    for (int i = 0; i < to.kCount; ++i) {                                                         \
      const Element a = to.at[i];                                                                 \
      const Element b = factor.at[i];                                                             \
      const Element c = term.at[i];                                                               \
      to.at[i] = expression;                                                                      \
    }                                                                                             \
    return to;                                                                                    \
  }                                                                                               \
  NEQ_EMULATED Vector _mm512_mask_##Name##_##Suffix(Vector first, Mask mask, Vector second,       \
                                                    Vector third) {                               \
    return _mm512_mask_mov_##Suffix(first, mask, _mm512_##Name##_##Suffix(first, second, third)); \
  }                                                                                               \
  NEQ_EMULATED Vector _mm512_mask3_##Name##_##Suffix(Vector first, Vector second, Vector third,   \
                                                     Mask mask) {                                 \
    return _mm512_mask_mov_##Suffix(third, mask, _mm512_##Name##_##Suffix(first, second, third)); \
  }
#define NEQ_BOTH(Define, Name, expression)               \
  Define(Name, ps, __m512, float, __mmask16, expression) \
      Define(Name, pd, __m512d, double, __mmask8, expression)

NEQ_BOTH(NEQ_TWO, add, a + b)
NEQ_BOTH(NEQ_TWO, sub, a - b)
NEQ_BOTH(NEQ_TWO, mul, a* b)
NEQ_BOTH(NEQ_TWO, div, a / b)
NEQ_BOTH(NEQ_TWO, max, a > b ? a : b)
NEQ_BOTH(NEQ_TWO, min, a < b ? a : b)
NEQ_BOTH(NEQ_ONE, sqrt, std::sqrt(a))
NEQ_BOTH(NEQ_FMA, fmadd, std::fma(a, b, c))
NEQ_BOTH(NEQ_FMA, fmsub, std::fma(a, b, -c))
NEQ_BOTH(NEQ_FMA, fnmadd, std::fma(-a, b, c))
NEQ_BOTH(NEQ_FMA, fnmsub, std::fma(-a, b, -c))
NEQ_TWO(add, epi32, __m512i, uint32_t, __mmask16, a + b)
NEQ_TWO(sub, epi32, __m512i, uint32_t, __mmask16, a - b)
NEQ_TWO(mullo, epi32, __m512i, uint32_t, __mmask16, a* b)
NEQ_TWO(and, epi32, __m512i, uint32_t, __mmask16, a& b)
NEQ_TWO(or, epi32, __m512i, uint32_t, __mmask16, a | b)
NEQ_TWO(xor, epi32, __m512i, uint32_t, __mmask16, a ^ b)
NEQ_TWO(andnot, epi32, __m512i, uint32_t, __mmask16, ~a& b)
NEQ_TWO(add, epi64, __m512i, uint64_t, __mmask8, a + b)
NEQ_TWO(sub, epi64, __m512i, uint64_t, __mmask8, a - b)
NEQ_TWO(add, epi16, __m512i, uint16_t, __mmask32, static_cast<uint16_t>(a + b))

NEQ_EMULATED __m512 _mm512_abs_ps(__m512 value) {
  auto to = emulated::Lanes<__m512, float>::of(value);
  for (float& a : to.at) a = std::fabs(a);
  return to;
}
NEQ_EMULATED __m512d _mm512_abs_pd(__m512d value) {
  auto to = emulated::Lanes<__m512d, double>::of(value);
  for (double& a : to.at) a = std::fabs(a);
  return to;
}

#define NEQ_LOGIC(Name)                                                                 \
  NEQ_EMULATED __m512i _mm512_##Name##_si512(__m512i a, __m512i b) {                    \
    return _mm512_##Name##_epi32(a, b);                                                 \
  }                                                                                     \
  NEQ_EMULATED __m512 _mm512_##Name##_ps(__m512 a, __m512 b) {                          \
    return emulated::cast<__m512>(                                                      \
        _mm512_##Name##_epi32(emulated::cast<__m512i>(a), emulated::cast<__m512i>(b))); \
  }                                                                                     \
  NEQ_EMULATED __m512d _mm512_##Name##_pd(__m512d a, __m512d b) {                       \
    return emulated::cast<__m512d>(                                                     \
        _mm512_##Name##_epi32(emulated::cast<__m512i>(a), emulated::cast<__m512i>(b))); \
  }
NEQ_LOGIC(and)
NEQ_LOGIC(or)
NEQ_LOGIC(xor)
NEQ_LOGIC(andnot)
#undef NEQ_LOGIC

#define NEQ_SHIFT(Name, Suffix, Element, expression)                         \
  NEQ_EMULATED __m512i _mm512_##Name##_##Suffix(__m512i value, unsigned n) { \
    auto to = emulated::Lanes<__m512i, Element>::of(value);                  \
    const unsigned bits = 8 * sizeof(Element);                               \
    for (Element& a : to.at) a = static_cast<Element>(expression);           \
    return to;                                                               \
  }
NEQ_SHIFT(slli, epi16, uint16_t, n < bits ? a << n : 0)
NEQ_SHIFT(slli, epi32, uint32_t, n < bits ? a << n : 0)
NEQ_SHIFT(slli, epi64, uint64_t, n < bits ? a << n : 0)
NEQ_SHIFT(srli, epi16, uint16_t, n < bits ? a >> n : 0)
NEQ_SHIFT(srli, epi32, uint32_t, n < bits ? a >> n : 0)
NEQ_SHIFT(srli, epi64, uint64_t, n < bits ? a >> n : 0)
NEQ_SHIFT(srai, epi32, int32_t, a >> (n < bits ? n : bits - 1))
#undef NEQ_SHIFT

#define NEQ_SET1(Suffix, Vector, Element)               \
  NEQ_EMULATED Vector _mm512_set1_##Suffix(Element a) { \
    emulated::Lanes<Vector, Element> to;                \
    for (Element& lane : to.at) lane = a;               \
    return to;                                          \
  }
NEQ_SET1(ps, __m512, float)
NEQ_SET1(pd, __m512d, double)
NEQ_SET1(epi8, __m512i, int8_t)
NEQ_SET1(epi16, __m512i, int16_t)
NEQ_SET1(epi32, __m512i, int32_t)
NEQ_SET1(epi64, __m512i, int64_t)
#undef NEQ_SET1

#undef NEQ_ONE
#undef NEQ_TWO
#undef NEQ_FMA
#undef NEQ_BOTH
}  // namespace neq

#include "avx512_lanes.h"
