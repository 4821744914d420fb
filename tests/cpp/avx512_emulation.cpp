// The emulated AVX-512 intrinsics against the processor's own, on random lanes, infinities, zeros
// and NaN among them. Where there is no AVX-512 to compare with, it says so and passes.
#define NEQ_EMULATE_AVX512
#include "cpu/isa.h"

#include <algorithm>
#include <limits>
#include <random>

#include "check.h"

namespace {

#define REAL \
  [[gnu::target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2")]] static size_t
#define EMULATED [[gnu::target("avx2,fma,f16c")]] static size_t

struct Data {
  alignas(64) float f[3][16];
  alignas(64) double d[3][8];
  alignas(64) uint32_t i[3][16];
  alignas(64) float numbers[16];  // no NaN: what becomes of its bits differs
  alignas(64) int32_t small[16];  // 0 to 7
};

// Every value an intrinsic may want, by type and a number.
#define OPERANDS                                                                         \
  [[maybe_unused]] const __m512 f0 = cast<__m512>(x.f[0]), f1 = cast<__m512>(x.f[1]),    \
                                f2 = cast<__m512>(x.f[2]);                               \
  [[maybe_unused]] const __m512d d0 = cast<__m512d>(x.d[0]), d1 = cast<__m512d>(x.d[1]), \
                                 d2 = cast<__m512d>(x.d[2]);                             \
  [[maybe_unused]] const __m512i i0 = cast<__m512i>(x.i[0]), i1 = cast<__m512i>(x.i[1]); \
  [[maybe_unused]] const __m512 numbers = cast<__m512>(x.numbers);                       \
  [[maybe_unused]] const __m512i small = cast<__m512i>(x.small);                         \
  [[maybe_unused]] const __m256i half_small = cast<__m256i>(x.small);                    \
  [[maybe_unused]] const __m256 half_f = cast<__m256>(x.f[0]);                           \
  [[maybe_unused]] const __m256d half_d = cast<__m256d>(x.d[0]);                         \
  [[maybe_unused]] const __m256i half_i = cast<__m256i>(x.i[0]);                         \
  [[maybe_unused]] const __m128i quarter_i = cast<__m128i>(x.i[0]);                      \
  [[maybe_unused]] const auto k8 = static_cast<__mmask8>(x.i[2][0]);                     \
  [[maybe_unused]] const auto k16 = static_cast<__mmask16>(x.i[2][1]);                   \
  [[maybe_unused]] const auto k32 = static_cast<__mmask32>(x.i[2][2]);                   \
  [[maybe_unused]] const auto k64 = __mmask64{x.i[2][3]} << 32 | x.i[2][4];

template <class Vector, class Array>
[[gnu::target("avx2,fma,f16c"), gnu::always_inline]] inline Vector cast(const Array& array) {
  Vector vector;
  std::memcpy(&vector, array, sizeof vector);
  return vector;
}

// Equal bits, or NaN on both sides: which NaN is nobody's promise.
template <class Element>
bool same(const char* one, const char* other, size_t bytes) {
  for (size_t at = 0; at < bytes; at += sizeof(Element)) {
    Element a, b;
    std::memcpy(&a, one + at, sizeof a);
    std::memcpy(&b, other + at, sizeof b);
    if (std::memcmp(&a, &b, sizeof a) != 0 && (a == a || b == b)) return false;
  }
  return true;
}

Data random_data(std::mt19937& random) {
  Data data;
  std::normal_distribution<double> normal(0, 1000);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double special[] = {0.0,       -0.0,       1.0,
                            kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()};
  const auto value = [&] { return random() % 4 ? normal(random) : special[random() % 6]; };
  for (auto& lanes : data.f) {
    for (float& lane : lanes) lane = static_cast<float>(value());
  }
  for (auto& lanes : data.d) {
    for (double& lane : lanes) lane = value();
  }
  for (auto& lanes : data.i) {
    for (uint32_t& lane : lanes) lane = random() % 4 ? random() : random() % 2;
  }
  for (int k = 0; k < 16; ++k) {
    data.numbers[k] = static_cast<float>(normal(random));
    data.small[k] = static_cast<int32_t>(random() % 8);
  }
  return data;
}

using Run = size_t (*)(const Data&, void*);
using Same = bool (*)(const char*, const char*, size_t);

void compare(const char* name, Run real, Run emulated, Same same) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const Data data = random_data(random);
    alignas(64) char one[64], other[64];
    std::memset(one, 0x5a, sizeof one);
    std::memset(other, 0x5a, sizeof other);
    const size_t bytes = real(data, one);
    const bool equal = emulated(data, other) == bytes && same(one, other, bytes);
    if (!equal) std::fprintf(stderr, "%s, round %d\n", name, round);
    CHECK(equal);
  }
}

// A widening cast defines its lower half only; what stores into `out` reaches all of it at most.
#define COMPARE(Element, name, real_body, emulated_body)                                \
  {                                                                                     \
    struct Both {                                                                       \
      REAL real(const Data& x, [[maybe_unused]] void* out){OPERANDS real_body} EMULATED \
          emulated(const Data& x, [[maybe_unused]] void* out) {                         \
        OPERANDS emulated_body                                                          \
      }                                                                                 \
    };                                                                                  \
    compare(#name, Both::real, Both::emulated, same<Element>);                          \
  }
#define RESULT(bytes, call)                                  \
  const auto result = call;                                  \
  std::memcpy(out, &result, std::min(bytes, sizeof result)); \
  return std::min(bytes, sizeof result);
#define RETURNS(Element, bytes, name, ...)                           \
  COMPARE(Element, name, RESULT(size_t{bytes}, ::name(__VA_ARGS__)), \
          RESULT(size_t{bytes}, neq::name(__VA_ARGS__)))
#define FLOATS(...) RETURNS(float, 64, __VA_ARGS__)
#define DOUBLES(...) RETURNS(double, 64, __VA_ARGS__)
#define BITS(...) RETURNS(char, 64, __VA_ARGS__)
#define LOWER_HALF(...) RETURNS(char, 32, __VA_ARGS__)
#define STORES(name, ...) \
  COMPARE(char, name, ::name(__VA_ARGS__); return 64;, neq::name(__VA_ARGS__); return 64;)

#define MOVES(prefix, suffix, Macro, k, a, b, memory) \
  Macro(prefix##_mask_mov_##suffix, a, k, b);         \
  Macro(prefix##_mask_blend_##suffix, k, a, b);       \
  Macro(prefix##_maskz_mov_##suffix, k, a);           \
  Macro(prefix##_mask_loadu_##suffix, a, k, memory);  \
  Macro(prefix##_maskz_loadu_##suffix, k, memory);    \
  Macro(prefix##_mask_compress_##suffix, a, k, b);    \
  Macro(prefix##_maskz_compress_##suffix, k, a);      \
  Macro(prefix##_maskz_expand_##suffix, k, a);        \
  STORES(prefix##_mask_storeu_##suffix, out, k, a)

void check_moves() {
  MOVES(_mm512, ps, FLOATS, k16, f0, f1, x.f[2]);
  MOVES(_mm512, pd, DOUBLES, k8, d0, d1, x.d[2]);
  MOVES(_mm512, epi8, BITS, k64, i0, i1, x.i[2]);
  MOVES(_mm512, epi16, BITS, k32, i0, i1, x.i[2]);
  MOVES(_mm512, epi32, BITS, k16, i0, i1, x.i[2]);
  MOVES(_mm512, epi64, BITS, k8, i0, i1, x.i[2]);
  MOVES(_mm256, ps, FLOATS, k8, half_f, half_f, x.f[2]);
  MOVES(_mm256, pd, DOUBLES, k8 & 15, half_d, half_d, x.d[2]);
  MOVES(_mm256, epi16, BITS, k16, half_i, half_i, x.i[2]);
  MOVES(_mm256, epi32, BITS, k8, half_i, half_i, x.i[2]);
  MOVES(_mm256, epi8, BITS, k32, half_i, half_i, x.i[2]);
  MOVES(_mm256, epi64, BITS, k8 & 15, half_i, half_i, x.i[2]);
  MOVES(_mm, epi16, BITS, k8, quarter_i, quarter_i, x.i[2]);
  MOVES(_mm, epi32, BITS, k8 & 15, quarter_i, quarter_i, x.i[2]);
  FLOATS(_mm512_loadu_ps, &x.f[0][1]);
  DOUBLES(_mm512_loadu_pd, &x.d[0][1]);
  BITS(_mm512_loadu_si512, &x.i[0][1]);
  FLOATS(_mm512_load_ps, x.f[1]);
  STORES(_mm512_storeu_ps, out, f0);
  STORES(_mm512_storeu_pd, out, d0);
  STORES(_mm512_storeu_si512, out, i0);
  STORES(_mm512_store_pd, out, d0);
  STORES(_mm512_stream_ps, static_cast<float*>(out), f0);
  BITS(_mm512_setzero_si512);
  FLOATS(_mm512_i32gather_ps, small, x.f[1], 4);
  FLOATS(_mm512_mask_i32gather_ps, f0, k16, small, x.f[1], 4);
  DOUBLES(_mm512_i32gather_pd, half_small, x.d[1], 8);
  BITS(_mm512_i32gather_epi32, small, x.i[1], 4);
}

#define TWO(Macro, name, suffix, k, a, b, c)        \
  Macro(_mm512_##name##_##suffix, a, b);            \
  Macro(_mm512_mask_##name##_##suffix, c, k, a, b); \
  Macro(_mm512_maskz_##name##_##suffix, k, a, b)
#define TWO_FLOATS(name)                  \
  TWO(FLOATS, name, ps, k16, f0, f1, f2); \
  TWO(DOUBLES, name, pd, k8, d0, d1, d2)
#define TWO_BITS(name, suffix, k) TWO(BITS, name, suffix, k, i0, i1, i0)
#define FMA(name)                                    \
  FLOATS(_mm512_##name##_ps, f0, f1, f2);            \
  FLOATS(_mm512_mask_##name##_ps, f0, k16, f1, f2);  \
  FLOATS(_mm512_mask3_##name##_ps, f0, f1, f2, k16); \
  DOUBLES(_mm512_##name##_pd, d0, d1, d2);           \
  DOUBLES(_mm512_mask_##name##_pd, d0, k8, d1, d2);  \
  DOUBLES(_mm512_mask3_##name##_pd, d0, d1, d2, k8)
#define SHIFTS(name, suffix)             \
  BITS(_mm512_##name##_##suffix, i0, 3); \
  BITS(_mm512_##name##_##suffix, i0, 64)

void check_arithmetic() {
  TWO_FLOATS(add);
  TWO_FLOATS(sub);
  TWO_FLOATS(mul);
  TWO_FLOATS(div);
  TWO_FLOATS(max);
  TWO_FLOATS(min);
  FLOATS(_mm512_sqrt_ps, f0);
  FLOATS(_mm512_maskz_sqrt_ps, k16, f0);
  DOUBLES(_mm512_sqrt_pd, d0);
  FMA(fmadd);
  FMA(fmsub);
  FMA(fnmadd);
  FMA(fnmsub);
  TWO_BITS(add, epi16, k32);
  TWO_BITS(add, epi32, k16);
  TWO_BITS(sub, epi32, k16);
  TWO_BITS(mullo, epi32, k16);
  TWO_BITS(and, epi32, k16);
  TWO_BITS(or, epi32, k16);
  TWO_BITS(xor, epi32, k16);
  TWO_BITS(andnot, epi32, k16);
  TWO_BITS(add, epi64, k8);
  TWO_BITS(sub, epi64, k8);
  FLOATS(_mm512_abs_ps, f0);
  DOUBLES(_mm512_abs_pd, d0);
  BITS(_mm512_and_si512, i0, i1);
  BITS(_mm512_andnot_si512, i0, i1);
  BITS(_mm512_andnot_ps, f0, f1);
  BITS(_mm512_xor_pd, d0, d1);
  SHIFTS(slli, epi16);
  SHIFTS(slli, epi32);
  SHIFTS(slli, epi64);
  SHIFTS(srli, epi16);
  SHIFTS(srli, epi32);
  SHIFTS(srli, epi64);
  SHIFTS(srai, epi32);
  FLOATS(_mm512_set1_ps, x.f[0][0]);
  DOUBLES(_mm512_set1_pd, x.d[0][0]);
  BITS(_mm512_set1_epi8, static_cast<char>(x.i[0][0]));
  BITS(_mm512_set1_epi16, static_cast<short>(x.i[0][0]));
  BITS(_mm512_set1_epi32, static_cast<int>(x.i[0][0]));
  BITS(_mm512_set1_epi64, x.i[0][0]);
}

#define COMPARES(suffix, k, a, b)            \
  BITS(_mm512_cmpeq_##suffix##_mask, a, b);  \
  BITS(_mm512_cmpneq_##suffix##_mask, a, b); \
  BITS(_mm512_cmplt_##suffix##_mask, a, b);  \
  BITS(_mm512_cmple_##suffix##_mask, a, b);  \
  BITS(_mm512_mask_cmple_##suffix##_mask, k, a, b)
#define ORDER(suffix, k)                      \
  COMPARES(suffix, k, i0, i1);                \
  BITS(_mm512_cmpgt_##suffix##_mask, i0, i1); \
  BITS(_mm512_cmpge_##suffix##_mask, i0, i1)
#define PREDICATE(how)                   \
  BITS(_mm512_cmp_ps_mask, f0, f1, how); \
  BITS(_mm512_cmp_pd_mask, d0, d1, how); \
  BITS(_mm512_mask_cmp_ps_mask, k16, f0, f1, how)

void check_comparisons() {
  COMPARES(ps, k16, f0, f1);
  COMPARES(pd, k8, d0, d1);
  ORDER(epi8, k64);
  ORDER(epu8, k64);
  ORDER(epi16, k32);
  ORDER(epi32, k16);
  ORDER(epi64, k8);
  BITS(_mm512_test_epi8_mask, i0, i1);
  BITS(_mm512_test_epi16_mask, i0, i1);
  BITS(_mm512_mask_test_epi32_mask, k16, i0, i1);
  PREDICATE(0);
  PREDICATE(1);
  PREDICATE(2);
  PREDICATE(3);
  PREDICATE(4);
  PREDICATE(5);
  PREDICATE(6);
  PREDICATE(7);
  PREDICATE(8);
  PREDICATE(9);
  PREDICATE(10);
  PREDICATE(11);
  PREDICATE(12);
  PREDICATE(13);
  PREDICATE(14);
  PREDICATE(15);
  PREDICATE(_CMP_GE_OQ);
  PREDICATE(_CMP_LT_OQ);
}

#define HALVES(narrow, wide, half, whole, extract, insert) \
  BITS(_mm512_cast##wide##_##narrow, whole);               \
  BITS(_mm512_zext##narrow##_##wide, half);                \
  LOWER_HALF(_mm512_cast##narrow##_##wide, half);          \
  BITS(_mm512_##extract, whole, 0);                        \
  BITS(_mm512_##extract, whole, 1);                        \
  BITS(_mm512_##insert, whole, half, 0);                   \
  BITS(_mm512_##insert, whole, half, 1)
#define PERMUTES(suffix, Macro, k, a, b)         \
  Macro(_mm512_permutex2var_##suffix, a, i0, b); \
  Macro(_mm512_permutexvar_##suffix, i0, a);     \
  Macro(_mm512_maskz_permutexvar_##suffix, k, i0, a)

void check_lanes() {
  DOUBLES(_mm512_cvtps_pd, half_f);
  FLOATS(_mm512_cvtpd_ps, d0);
  FLOATS(_mm512_cvtph_ps, half_i);
  BITS(_mm512_cvtps_ph, numbers, 0);
  BITS(_mm512_cvtepi8_epi32, quarter_i);
  BITS(_mm512_cvtepu8_epi32, quarter_i);
  BITS(_mm512_cvtepi16_epi32, half_i);
  BITS(_mm512_cvtepu16_epi32, half_i);
  BITS(_mm512_cvtepi32_epi64, half_i);
  BITS(_mm512_cvtepi32_epi8, i0);
  BITS(_mm512_cvtepi32_epi16, i0);
  BITS(_mm512_cvtepi64_epi32, i0);
  FLOATS(_mm512_cvtepi32_ps, i0);
  DOUBLES(_mm512_cvtepi32_pd, half_i);
  BITS(_mm512_castps_si512, f0);
  BITS(_mm512_castsi512_pd, i0);
  HALVES(ps256, ps512, half_f, f0, extractf32x8_ps, insertf32x8);
  HALVES(pd256, pd512, half_d, d0, extractf64x4_pd, insertf64x4);
  HALVES(si256, si512, half_i, i0, extracti64x4_epi64, inserti64x4);
  BITS(_mm512_extractf32x4_ps, f0, 3);
  BITS(_mm512_extracti32x4_epi32, i0, 2);
  PERMUTES(ps, FLOATS, k16, f0, f1);
  PERMUTES(pd, DOUBLES, k8, d0, d1);
  PERMUTES(epi16, BITS, k32, i0, i1);
  PERMUTES(epi32, BITS, k16, i0, i1);
  PERMUTES(epi64, BITS, k8, i0, i1);
  FLOATS(_mm512_reduce_add_ps, f0);
  DOUBLES(_mm512_reduce_add_pd, d0);
  BITS(_mm512_reduce_add_epi32, small);
  BITS(_mm512_reduce_add_epi64, small);
  FLOATS(_mm512_reduce_max_ps, numbers);
}

}  // namespace

int main() {
#if !defined(__clang__)  // there, some of the real ones are macros, undone by the emulation
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2")) {
    check_moves();
    check_arithmetic();
    check_comparisons();
    check_lanes();
    std::puts("avx512_emulation: ok");
    return 0;
  }
#endif
  std::puts("avx512_emulation: skipped, no AVX-512 here to compare with");
}
