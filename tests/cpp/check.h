// What the tests of the C ABI share: a check that ends the program, and ways to run a loop.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "neq/neq.h"

#define CHECK(condition)                                                                    \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      std::fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, \
                   neq_last_error());                                                       \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (false)

#define CHECK_REFUSED(call, text)                          \
  do {                                                     \
    CHECK((call) != NEQ_OK);                               \
    CHECK(std::strstr(neq_last_error(), text) != nullptr); \
  } while (false)

// Calls body once for every instruction set this processor has, or that is emulated, forced.
template <class Body>
void with_each_isa(Body body) {
  const neq_isa before = neq_cpu_isa();
  for (const neq_isa isa : {NEQ_ISA_SCALAR, NEQ_ISA_AVX2, NEQ_ISA_AVX512}) {
    if (!neq_cpu_isa_supported(isa)) continue;
    CHECK(neq_cpu_set_isa(isa) == NEQ_OK);
    body();
  }
  CHECK(neq_cpu_set_isa(before) == NEQ_OK);
}

// Backwards, one step at a time: whatever relied on the order of the ranges shows.
inline neq_parallel backwards() {
  return {[](void*, int64_t begin, int64_t end, int64_t, neq_body body, void* arg) {
            for (int64_t at = end; at-- > begin;) body(arg, at, at + 1);
          },
          nullptr};
}

inline neq_parallel four_threads() {
  return {[](void*, int64_t begin, int64_t end, int64_t, neq_body body, void* arg) {
            std::vector<std::thread> threads;
            for (int64_t t = 0; t < 4; ++t) {
              const int64_t from = begin + (end - begin) * t / 4;
              const int64_t to = begin + (end - begin) * (t + 1) / 4;
              if (from < to) threads.emplace_back([=] { body(arg, from, to); });
            }
            for (auto& thread : threads) thread.join();
          },
          nullptr};
}
