/* The C ABI of the neq_kernels core: plain data in, a status out, nothing thrown, nothing
 * allocated.
 *
 * Every function returns NEQ_OK or says in neq_last_error() (per thread) which argument was wrong,
 * what was expected and what came; nothing has been written then.
 */
#ifndef NEQ_NEQ_H
#define NEQ_NEQ_H

#include <stdint.h>

#define NEQ_API __attribute__((visibility("default")))
#define NEQ_MAX_DIMS 8

#ifdef __cplusplus
extern "C" {
#endif

typedef enum neq_status {
  NEQ_OK = 0,
  NEQ_INVALID_ARGUMENT = 1,
  NEQ_UNSUPPORTED = 2,
  NEQ_CUDA_ERROR = 3
} neq_status;

typedef enum neq_dtype { NEQ_F32 = 0, NEQ_F64 = 1, NEQ_F16 = 2, NEQ_BF16 = 3 } neq_dtype;

/* Each one includes those before it. AVX2 means with FMA and F16C, AVX-512 with F, BW, DQ, VL and
 * VBMI2 (Ice Lake, Zen 4 and later). */
typedef enum neq_isa { NEQ_ISA_SCALAR = 0, NEQ_ISA_AVX2 = 1, NEQ_ISA_AVX512 = 2 } neq_isa;

/* A strided view of memory the caller owns; strides in elements, none negative. */
typedef struct neq_tensor {
  void* data;
  int32_t dtype; /* a neq_dtype */
  int32_t ndim;
  int64_t size[NEQ_MAX_DIMS];
  int64_t stride[NEQ_MAX_DIMS];
} neq_tensor;

/* Memory a function may scribble on; aligned to 8 bytes. */
typedef struct neq_scratch {
  void* data;
  int64_t bytes;
} neq_scratch;

/* How to spread a loop over threads: run must call body on disjoint ranges that cover [begin, end),
 * each of at least `grain` steps where possible, and return when all are done. Results do not
 * depend on the ranges chosen. Where a function takes a `const neq_parallel*`, NULL means the
 * calling thread.
 */
typedef void (*neq_body)(void* arg, int64_t begin, int64_t end);
typedef struct neq_parallel {
  void (*run)(void* context, int64_t begin, int64_t end, int64_t grain, neq_body body, void* arg);
  void* context;
} neq_parallel;

/* The message of this thread's last failure; empty when there was none. Valid until the next one.
 */
NEQ_API const char* neq_last_error(void);

/* The instruction set the CPU kernels use, the best this machine has unless one was forced. */
NEQ_API neq_isa neq_cpu_isa(void);
NEQ_API const char* neq_cpu_isa_name(neq_isa isa);
NEQ_API int32_t neq_cpu_isa_supported(neq_isa isa);
/* For tests and for comparing: applies to the whole process. */
NEQ_API neq_status neq_cpu_set_isa(neq_isa isa);

/* The CUDA the kernels were built with and the newest one this machine's driver serves, as 13000
 * for 13.0; 0 where there is no driver. Like every neq_*_cuda*, only in a library built with CUDA.
 */
NEQ_API neq_status neq_cuda_versions(int32_t* runtime, int32_t* driver);

/* packed[.., i, ..] = dy[.., index[i], ..], zero where index[i] < 0, along dimension `dim`;
 * bias[i] = sum of packed[.., i, ..] over all other dimensions, in the same pass; bias may be NULL.
 *
 * `packed` has dy's dtype and sizes except size[dim], which is the length of `index` and `bias`; it
 * must not overlap dy or itself. `index` rises strictly and may end in a run of -1 (padding). Sums
 * are taken in fp32 over short runs and in fp64 across them, in an order that depends on the sizes
 * alone, and rounded once to dy's dtype. Any strides are read in place.
 *
 * `scratch` needs what neq_pack_channels_cpu_scratch says for the same arguments (-1: they are
 * wrong, see neq_last_error; pass the same NULL or non-NULL bias).
 */
NEQ_API int64_t neq_pack_channels_cpu_scratch(const neq_tensor* dy, int32_t dim,
                                              const neq_tensor* packed, const void* bias);
NEQ_API neq_status neq_pack_channels_cpu(const neq_tensor* dy, int32_t dim, const int32_t* index,
                                         const neq_tensor* packed, void* bias, neq_scratch scratch,
                                         const neq_parallel* parallel);

/* Per channel c along dimension `dim` of two tensors of equal sizes: the sums of a*b, a*a and b*b
 * over all other dimensions, or, if per_sample, over all but dim and dimension 0.
 *
 * `moments` holds 3 * size[dim] doubles, [3, channels], if per_sample 3 * size[0] * size[dim],
 * [3, samples, channels]; sums of nothing are 0. The dtypes of a and b may differ. All products and
 * sums are fp64, in an order that depends on the sizes alone. Any strides are read in place.
 *
 * `scratch` needs what neq_channel_moments_cpu_scratch says for the same arguments (-1: they are
 * wrong, see neq_last_error).
 */
NEQ_API int64_t neq_channel_moments_cpu_scratch(const neq_tensor* a, const neq_tensor* b,
                                                int32_t dim, int32_t per_sample);
NEQ_API neq_status neq_channel_moments_cpu(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                                           int32_t per_sample, double* moments, neq_scratch scratch,
                                           const neq_parallel* parallel);

#ifdef __cplusplus
}
#endif

#endif
