// Which instruction set the CPU kernels use: asked of the processor once, or forced by a test.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>

#include "neq/neq.h"
#include "status.h"

namespace {

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know it before version 19.
bool has_f16c() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

neq_isa best_isa() noexcept {
  if (neq_cpu_isa_supported(NEQ_ISA_AVX512)) return NEQ_ISA_AVX512;
  return neq_cpu_isa_supported(NEQ_ISA_AVX2) ? NEQ_ISA_AVX2 : NEQ_ISA_SCALAR;
}

std::atomic<neq_isa>& current_isa() noexcept {
  static std::atomic<neq_isa> current{best_isa()};
  return current;
}

}  // namespace

neq_isa neq_cpu_isa(void) { return current_isa().load(std::memory_order_relaxed); }

const char* neq_cpu_isa_name(neq_isa isa) {
  switch (isa) {
    case NEQ_ISA_SCALAR:
      return "scalar";
    case NEQ_ISA_AVX2:
      return "avx2";
    case NEQ_ISA_AVX512:
      return "avx512";
  }
  return "unknown";
}

int32_t neq_cpu_isa_supported(neq_isa isa) {
#if defined(__x86_64__)
  // What isa.h asks the compiler for, each on its own: virtual machines hide single ones. The
  // builtin also asks whether the operating system keeps the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == NEQ_ISA_AVX2) return avx2;
#if defined(NEQ_EMULATE_AVX512)
  if (isa == NEQ_ISA_AVX512) return avx2;
#else
  // vbmi2 leaves out the first processors with AVX-512, which clock down when it is used.
  if (isa == NEQ_ISA_AVX512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi2");
  }
#endif
#endif
  return isa == NEQ_ISA_SCALAR;
}

neq_status neq_cpu_set_isa(neq_isa isa) {
  if (!neq_cpu_isa_supported(isa)) {
    return neq::fail(NEQ_UNSUPPORTED, "isa: expected one this processor has, got %s; force scalar",
                     neq_cpu_isa_name(isa));
  }
  current_isa().store(isa, std::memory_order_relaxed);
  return NEQ_OK;
}
