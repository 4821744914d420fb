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

/* How a convolution slides: per spatial dimension of its tensors, in their order. Output p reads
 * input p * stride + r * dilation - padding with weight r, and nothing where there is no such
 * input.
 */
typedef struct neq_window {
  int64_t stride[2];
  int64_t padding[2];
  int64_t dilation[2];
} neq_window;

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

/* The same on the current CUDA device, asynchronously on `stream`: a cudaStream_t, NULL for the
 * default one. All pointers are the device's, so `index` is not checked: a place outside
 * [0, dy->size[dim]) is padding. Sums are bit-identical from run to run, not from GPU to GPU.
 */
NEQ_API int64_t neq_pack_channels_cuda_scratch(const neq_tensor* dy, int32_t dim,
                                               const neq_tensor* packed, const void* bias);
NEQ_API neq_status neq_pack_channels_cuda(const neq_tensor* dy, int32_t dim, const int32_t* index,
                                          const neq_tensor* packed, void* bias, neq_scratch scratch,
                                          void* stream);

/* Who trains until the next update, of one layer: a byte per channel, not 0 where it is active, or
 * its velocity.
 */
typedef enum neq_choice_kind {
  NEQ_MASK = 0,
  NEQ_VELOCITY_F32 = 1,
  NEQ_VELOCITY_F64 = 2
} neq_choice_kind;
typedef struct neq_choice {
  const void* data;
  int64_t size;
} neq_choice;

/* Of `count` layers at once, all of one `kind` (a neq_choice_kind): the active channels, which are
 * those that a mask names, or those with |velocity| >= epsilon (NaN is frozen).
 *
 * `lists` holds count + sum(size) numbers: how many are active in each layer, then of one layer
 * after the other the active channels in rising order, followed by -1 up to its size. `layers`
 * itself is host memory on every device.
 */
NEQ_API neq_status neq_compact_cpu(const neq_choice* layers, int64_t count, int32_t kind,
                                   double epsilon, int32_t* lists);

/* The same on the current CUDA device, asynchronously on `stream`: what the layers point to, and
 * `lists`, is the device's.
 */
NEQ_API neq_status neq_compact_cuda(const neq_choice* layers, int64_t count, int32_t kind,
                                    double epsilon, int32_t* lists, void* stream);

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

/* The same on the current CUDA device, asynchronously on `stream`. All pointers are the device's.
 * Sums are bit-identical from run to run.
 */
NEQ_API int64_t neq_channel_moments_cuda_scratch(const neq_tensor* a, const neq_tensor* b,
                                                 int32_t dim, int32_t per_sample);
NEQ_API neq_status neq_channel_moments_cuda(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                                            int32_t per_sample, double* moments,
                                            neq_scratch scratch, void* stream);

/* A parameter, its gradient and its optimizer's state, to be stepped row by row in place: tensors
 * of one dtype and shape, each with its own strides. What steps is written, so it must overlap
 * neither itself nor another of them; the gradient is only read. A neuron is a slice along `dim`;
 * those in `index` are stepped, the others not touched.
 */
#define NEQ_ROW_TENSORS 5
typedef struct neq_row_parameter {
  neq_tensor tensor[NEQ_ROW_TENSORS]; /* parameter, gradient, then state: see the operator */
  int32_t dim;                        /* not read where count is -1 */
  const int32_t* index;               /* the active neurons, strictly rising */
  int64_t count;                      /* how many; -1: every neuron, and index is not read */
  double step;                        /* row_adamw: steps taken, this one included */
} neq_row_parameter;

/* For every active row:
 *   g = (maximize ? -g : g) + weight_decay * p
 *   b = momentum * b + (1 - dampening) * g;  g = nesterov ? g + momentum * b : b   (momentum != 0)
 *   p = p - lr * g
 * with p, g, b = tensor[0] to tensor[2]; without momentum there is no b. Sums are taken in fp32
 * (fp64 for fp64) and each result is rounded once. All parameters in one call.
 *
 * `scratch` needs what neq_row_sgd_cpu_scratch says for the same arguments (-1: they are wrong).
 */
typedef struct neq_sgd {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  int32_t nesterov;
  int32_t maximize;
} neq_sgd;
NEQ_API int64_t neq_row_sgd_cpu_scratch(const neq_sgd* options, const neq_row_parameter* parameters,
                                        int64_t count);
NEQ_API neq_status neq_row_sgd_cpu(const neq_sgd* options, const neq_row_parameter* parameters,
                                   int64_t count, neq_scratch scratch,
                                   const neq_parallel* parallel);
/* The same on the current CUDA device, asynchronously on `stream` (a cudaStream_t, NULL for the
 * default one). Data and indices are the device's, so what an index holds is not checked: a neuron
 * that is not there is padding, and none may come twice.
 */
NEQ_API neq_status neq_row_sgd_cuda(const neq_sgd* options, const neq_row_parameter* parameters,
                                    int64_t count, void* stream);

/* For every active row, at this parameter's step t:
 *   g = maximize ? -g : g
 *   p = (1 - lr * weight_decay) * p   (decoupled),   g = g + weight_decay * p   (otherwise)
 *   m = m + (1 - beta1) * (g - m);  v = beta2 * v + (1 - beta2) * g * g
 *   d = amsgrad ? (x = max(x, v)) : v
 *   p = p - lr / (1 - beta1^t) * m / (sqrt(d) / sqrt(1 - beta2^t) + eps)
 * with p, g, m, v, x = tensor[0] to tensor[4]; without amsgrad there is no x. Rounding and scratch
 * as for row_sgd.
 */
typedef struct neq_adamw {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  int32_t decoupled;
  int32_t amsgrad;
  int32_t maximize;
  int32_t padding;
} neq_adamw;
NEQ_API int64_t neq_row_adamw_cpu_scratch(const neq_adamw* options,
                                          const neq_row_parameter* parameters, int64_t count);
NEQ_API neq_status neq_row_adamw_cpu(const neq_adamw* options, const neq_row_parameter* parameters,
                                     int64_t count, neq_scratch scratch,
                                     const neq_parallel* parallel);
/* As neq_row_sgd_cuda. */
NEQ_API neq_status neq_row_adamw_cuda(const neq_adamw* options, const neq_row_parameter* parameters,
                                      int64_t count, void* stream);

/* The weight gradient of a convolution with one input channel per group, for its active channels:
 *   dw[o, 0, r, s] = sum over n, p, q of dy[n, o, p, q] * x[n, o / multiplier, i(p, r), j(q, s)]
 * with i and j as neq_window says, and db[o] = sum over n, p, q of dy[n, o, p, q], in the same
 * pass. All other rows of dw and elements of db become zero.
 *
 * dy is [N, O, *out], x [N, C, *in], dw [O, 1, *kernel], each with one or two spatial dimensions
 * and any strides; O is C times the multiplier. `index` lists the `width` active channels, rising
 * strictly, and may end in a run of -1 (padding). db is [O], contiguous, or NULL. Sums are taken in
 * fp32 (fp64 for fp64) over short runs and in fp64 across them, in an order that depends on the
 * sizes and strides alone, and rounded once. Values that are not finite spoil their channel's row,
 * perhaps in more places than they touch, and no other row.
 *
 * `scratch` needs what neq_depthwise_wgrad_cpu_scratch says for the same arguments, or is refused.
 */
NEQ_API int64_t neq_depthwise_wgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* x,
                                                int64_t width, const neq_window* window,
                                                const neq_tensor* dw);
NEQ_API neq_status neq_depthwise_wgrad_cpu(const neq_tensor* dy, const neq_tensor* x,
                                           const int32_t* index, int64_t width,
                                           const neq_window* window, const neq_tensor* dw, void* db,
                                           neq_scratch scratch, const neq_parallel* parallel);

/* The same on the current CUDA device, asynchronously on `stream` (a cudaStream_t, NULL for the
 * default one). All pointers are the device's, so `index` is not checked: a place outside
 * [0, dy->size[1]) is padding. Sums are bit-identical from run to run, not from GPU to GPU.
 */
NEQ_API int64_t neq_depthwise_wgrad_cuda_scratch(const neq_tensor* dy, const neq_tensor* x,
                                                 int64_t width, const neq_window* window,
                                                 const neq_tensor* dw);
NEQ_API neq_status neq_depthwise_wgrad_cuda(const neq_tensor* dy, const neq_tensor* x,
                                            const int32_t* index, int64_t width,
                                            const neq_window* window, const neq_tensor* dw,
                                            void* db, neq_scratch scratch, void* stream);

/* The weight gradient of a convolution without groups, for its active channels o:
 *   dw[o, c, r, s] = sum over n, p, q of dy[n, o, p, q] * x[n, c, i(p, r), j(q, s)]
 * with i and j as neq_window says, and db[o] = sum over n, p, q of dy[n, o, p, q]. Made for few
 * active channels: the work is that of `width` rows, not of whole vectors of them.
 *
 * dy is [N, O, *out], x [N, C, *in], dw [O, C, *kernel], each with one or two spatial dimensions
 * and any strides. `index` lists the `width` active channels, rising strictly, and may end in a run
 * of -1 (padding); the rows of all others become zero. db is [O], contiguous, or NULL. Sums are
 * taken in fp32 (fp64 for fp64), in an order that depends on the sizes and strides alone.
 * Values that are not finite spoil their channel's row (of dy) or column (of x), perhaps in more
 * places than they touch.
 *
 * `scratch` needs what neq_conv_wgrad_cpu_scratch says for the same arguments, or is refused.
 */
NEQ_API int64_t neq_conv_wgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                                           const neq_window* window, const neq_tensor* dw);
NEQ_API neq_status neq_conv_wgrad_cpu(const neq_tensor* dy, const neq_tensor* x,
                                      const int32_t* index, int64_t width, const neq_window* window,
                                      const neq_tensor* dw, void* db, neq_scratch scratch,
                                      const neq_parallel* parallel);

/* The input gradient of a convolution without groups, from its active channels alone:
 *   dx[n, c, u, v] = sum over i, r, s of weight[index[i], c, r, s] * dy[n, index[i], p, q]
 * for all p, q with i(p, r) = u and j(q, s) = v as neq_window says, 0 where there are none. The
 * work is that of the active channels; the others' dy and weights are not read.
 *
 * dy is [N, O, *out], weight [O, C, *kernel], dx [N, C, *in], each with one or two spatial
 * dimensions and any strides. `index` lists the `width` active channels, rising strictly, and may
 * end in a run of -1 (padding). Sums are taken in fp32 (fp64 for fp64), in an order that depends on
 * the sizes and strides alone, and rounded once. A weight that is not finite spoils its channel of
 * dx, perhaps in more places than it touches.
 *
 * `scratch` needs what neq_conv_dgrad_cpu_scratch says for the same arguments, or is refused.
 */
NEQ_API int64_t neq_conv_dgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* weight,
                                           int64_t width, const neq_window* window,
                                           const neq_tensor* dx);
NEQ_API neq_status neq_conv_dgrad_cpu(const neq_tensor* dy, const neq_tensor* weight,
                                      const int32_t* index, int64_t width, const neq_window* window,
                                      const neq_tensor* dx, neq_scratch scratch,
                                      const neq_parallel* parallel);

#ifdef __cplusplus
}
#endif

#endif
