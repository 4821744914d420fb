// Instruction sets beyond plain x86-64, asked for function by function: a flag for a whole file
// would also reach the inline functions of the standard library, which the linker shares with
// code that must run anywhere.
//
// A kernel file <operator>_avx512.cpp marks its functions NEQ_AVX512 and what they inline
// NEQ_AVX512_INLINE; neq_cpu_isa() decides at run time which file's functions are called. Levels
// rise: a machine at NEQ_ISA_AVX512 has all of AVX2, so an operator without AVX-512 loops asks for
// `neq_cpu_isa() >= NEQ_ISA_AVX2`.
//
// With NEQ_EMULATE_AVX512, for tests, the same sources run the intrinsics lane by lane.
#pragma once

#if defined(__x86_64__)

// Before 13, gcc warns of its own intrinsics, whose unused lanes are "undefined" on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#define NEQ_AVX2_TARGET "avx2,fma,f16c"
#define NEQ_AVX2 [[gnu::target(NEQ_AVX2_TARGET)]]
#define NEQ_AVX2_INLINE [[gnu::target(NEQ_AVX2_TARGET), gnu::always_inline]] inline

#if defined(NEQ_EMULATE_AVX512)
#define NEQ_AVX512_TARGET NEQ_AVX2_TARGET
#include "emulation/avx512.h"
#else
#define NEQ_AVX512_TARGET NEQ_AVX2_TARGET ",avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2"
#endif
#define NEQ_AVX512 [[gnu::target(NEQ_AVX512_TARGET)]]
#define NEQ_AVX512_INLINE [[gnu::target(NEQ_AVX512_TARGET), gnu::always_inline]] inline

#endif
