// Which rows are stepped by whom: the work of all parameters is cut into pieces of about as many
// elements each, by the sizes alone, and threads take pieces. No element needs another one, so the
// cuts change no bit.
#include "row_step.h"

#include <algorithm>

#include "tensor.h"

namespace neq::rows {
namespace {

constexpr int64_t kPiece = 8192;  // elements
constexpr int64_t kGrain = 4;     // pieces worth a thread of its own
constexpr int64_t kBatchRuns = 32;
constexpr int64_t kBatchElements = 512;
constexpr int64_t kPrefetchBytes = 1024;
constexpr int64_t kGapBytes = 4096;
constexpr int64_t kLineBytes = 64;

// One parameter, ready to be stepped.
struct Job {
  const neq_row_parameter* parameter;
  Layout layout;
  Numbers numbers;
  const Kernels* kernels;
  const uint64_t* mask;  // kColumns: the index as bits
  int64_t first_piece;
  int64_t pieces;
  int64_t element;  // bytes
  int tensors;
};

struct Work {
  const Job* jobs;
  int64_t count;
};

// None beside an empty dimension: any number of neurons may come with it.
int64_t mask_words(const neq_row_parameter& parameter) noexcept {
  const neq_tensor& tensor = parameter.tensor[0];
  const int64_t* end = tensor.size + tensor.ndim;
  if (parameter.count <= 0 || std::find(tensor.size, end, 0) != end) return 0;
  return divide_up(tensor.size[parameter.dim], 64);
}

const Kernels& best_kernels(Formula formula, neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_kernels(formula, dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_kernels(formula, dtype);
#endif
  return scalar_kernels(formula, dtype);
}

void pointers(const Job& job, int64_t offset, char** at) noexcept {
  for (int t = 0; t < job.tensors; ++t) {
    at[t] = static_cast<char*>(job.parameter->tensor[t].data) + offset * job.element;
  }
}

int64_t neuron(const Job& job, int64_t row) noexcept {
  return job.layout.all ? row : job.parameter->index[row];
}

// Runs that are stepped together, while the memory of the next ones is on its way.
struct Batch {
  Run runs[kBatchRuns];
  int64_t count = 0;
  int64_t elements = 0;
};

// The start of a run, which the processor takes about 200 ns to follow by itself. To ask for more
// of it holds up the loads of the run before: half as fast in rows of 4 KiB.
[[gnu::always_inline]] inline void prefetch(const Job& job, const Run& run) noexcept {
  const int64_t bytes = std::min(kPrefetchBytes, run.elements * job.element);
  for (int t = 0; t < job.tensors; ++t) {
    const char* start = static_cast<const char*>(job.parameter->tensor[t].data);
    start += run.offset * job.element;
    for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(start + at);
  }
}

// At most `most` elements from `column` of active row `*row` on, and the row behind them. Rows that
// are neighbours in memory make one run.
Run run_at(const Job& job, int64_t* row, int64_t column, int64_t most) noexcept {
  const Layout& layout = job.layout;
  Run run = {neuron(job, *row) * layout.stride + column, layout.run - column};
  while (layout.stride == layout.run && run.elements < most &&
         neuron(job, *row + 1) == neuron(job, *row) + 1) {
    run.elements += layout.run;
    ++*row;
  }
  run.elements = std::min(run.elements, most);
  ++*row;
  return run;
}

// The next batch from element `begin` of the active rows laid end to end, at most up to `end`.
Batch gather(const Job& job, int64_t begin, int64_t end) noexcept {
  Batch batch;
  int64_t row = begin / job.layout.run;
  int64_t column = begin % job.layout.run;
  while (begin < end && batch.count < kBatchRuns && batch.elements < kBatchElements) {
    const Run run = run_at(job, &row, column, end - begin);
    prefetch(job, run);
    batch.runs[batch.count++] = run;
    batch.elements += run.elements;
    begin += run.elements;
    column = 0;
  }
  return batch;
}

void step_scattered(const Job& job, int64_t begin, int64_t end) noexcept {
  char* at[NEQ_ROW_TENSORS];
  pointers(job, 0, at);
  Batch batch = gather(job, begin, end);
  while (batch.count > 0) {
    begin += batch.elements;
    const Batch next = gather(job, begin, end);
    job.kernels->runs(job.numbers, at, batch.runs, batch.count);
    batch = next;
  }
}

// Loads, which the processor's own streams follow as they do not follow prefetches.
void read(const Job& job, char* const* at, int64_t begin, int64_t end) noexcept {
  for (int64_t i = begin; i < end; i += kLineBytes / job.element) {
    for (int t = 0; t < job.tensors; ++t) {
      (void)*static_cast<volatile const char*>(at[t] + i * job.element);
    }
  }
}

// Frozen rows between the active ones are read, too: skipping a few lines breaks the stream, which
// costs more than they do.
void step_dense(const Job& job, int64_t begin, int64_t end) noexcept {
  char* at[NEQ_ROW_TENSORS];
  pointers(job, 0, at);
  int64_t row = begin / job.layout.run;
  int64_t column = begin % job.layout.run;
  Run before = {0, 0};
  while (begin < end) {
    const Run run = run_at(job, &row, column, end - begin);
    const int64_t gap = before.offset + before.elements;
    if (before.elements > 0 && (run.offset - gap) * job.element <= kGapBytes) {
      read(job, at, gap, run.offset);
    }
    job.kernels->runs(job.numbers, at, &run, 1);
    before = run;
    begin += run.elements;
    column = 0;
  }
}

// Whether most of the memory from the first active row to the last belongs to active ones; what
// lies between rows that are not neighbours is not ours to read.
bool dense(const Job& job) noexcept {
  const neq_row_parameter& parameter = *job.parameter;
  return job.layout.stride == job.layout.run && !job.layout.all &&
         3 * parameter.count >= 2 * parameter.tensor[0].size[parameter.dim];
}

void step_rows(const Job& job, int64_t begin, int64_t end) noexcept {
  if (dense(job)) return step_dense(job, begin, end);
  step_scattered(job, begin, end);
}

void step_columns(const Job& job, int64_t begin, int64_t end) noexcept {
  const int64_t neurons = job.parameter->tensor[0].size[job.parameter->dim];
  char* at[NEQ_ROW_TENSORS];
  for (int64_t line = begin; line < end; ++line) {
    pointers(job, line * job.layout.stride, at);
    job.kernels->masked(job.numbers, at, job.mask, neurons);
  }
}

void step_strided(const Job& job, int64_t begin, int64_t end) noexcept {
  const neq_row_parameter& parameter = *job.parameter;
  char* at[NEQ_ROW_TENSORS];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / job.layout.run;
    for (int t = 0; t < job.tensors; ++t) {
      const neq_tensor& tensor = parameter.tensor[t];
      int64_t left = i % job.layout.run;
      int64_t offset = 0;
      for (int32_t d = tensor.ndim - 1; d >= 0; --d) {
        if (!job.layout.all && d == parameter.dim) {
          offset += neuron(job, row) * tensor.stride[d];
        } else {
          offset += left % tensor.size[d] * tensor.stride[d];
          left /= tensor.size[d];
        }
      }
      at[t] = static_cast<char*>(tensor.data) + offset * job.element;
    }
    const Run one = {0, 1};
    job.kernels->runs(job.numbers, at, &one, 1);
  }
}

void step_piece(const Job& job, int64_t piece) noexcept {
  const Layout& layout = job.layout;
  const bool columns = layout.walk == Walk::kColumns;
  const int64_t steps = columns ? layout.run : layout.rows * layout.run;
  const int64_t begin = block_start(piece, job.pieces, steps);
  const int64_t end = block_start(piece + 1, job.pieces, steps);
  switch (layout.walk) {
    case Walk::kRows:
      return step_rows(job, begin, end);
    case Walk::kColumns:
      return step_columns(job, begin, end);
    case Walk::kStrided:
      return step_strided(job, begin, end);
  }
}

void step_pieces(void* arg, int64_t begin, int64_t end) {
  const Work& work = *static_cast<const Work*>(arg);
  const Job* const last = work.jobs + work.count;
  const Job* job = std::upper_bound(work.jobs, last, begin, [](int64_t piece, const Job& other) {
    return piece < other.first_piece + other.pieces;
  });
  for (int64_t piece = begin; piece < end; ++piece) {
    while (piece >= job->first_piece + job->pieces) ++job;
    step_piece(*job, piece - job->first_piece);
  }
}

int64_t pieces_of(const neq_row_parameter& parameter, const Layout& layout) noexcept {
  if (layout.rows == 0) return 0;
  if (layout.walk != Walk::kColumns) return divide_up(layout.rows * layout.run, kPiece);
  // Whole lines; of a line all elements count, since all of its memory is read.
  const int64_t lines = std::max<int64_t>(kPiece / parameter.tensor[0].size[parameter.dim], 1);
  return divide_up(layout.run, lines);
}

Job plan(Formula formula, const neq_row_parameter& parameter, uint64_t* mask) noexcept {
  Job job{};
  job.parameter = &parameter;
  job.layout = understand(parameter, formula);
  job.tensors = tensors_of(formula);
  job.element = element_bytes(parameter.tensor[0].dtype);
  const auto dtype = static_cast<neq_dtype>(parameter.tensor[0].dtype);
  const bool vectors = job.layout.walk != Walk::kStrided;
  job.kernels = vectors ? &best_kernels(formula, dtype) : &scalar_kernels(formula, dtype);
  job.pieces = pieces_of(parameter, job.layout);
  if (job.layout.walk == Walk::kColumns) {
    std::fill_n(mask, mask_words(parameter), 0);
    for (int64_t i = 0; i < parameter.count; ++i) {
      mask[parameter.index[i] / 64] |= uint64_t{1} << parameter.index[i] % 64;
    }
    job.mask = mask;
  }
  return job;
}

}  // namespace

int64_t scratch_bytes(const neq_row_parameter* parameters, int64_t count) noexcept {
  int64_t bytes = count * static_cast<int64_t>(sizeof(Job));
  for (int64_t i = 0; i < count; ++i) bytes += mask_words(parameters[i]) * 8;
  return bytes;
}

neq_status step(Formula formula, const neq_row_parameter* parameters, int64_t count,
                Numbers (*numbers)(const void* options, const neq_row_parameter& parameter),
                const void* options, neq_scratch scratch, const neq_parallel* parallel) noexcept {
  for (int64_t i = 0; i < count; ++i) {
    const neq_status status = check_index(parameters[i], i);
    if (status != NEQ_OK) return status;
  }
  const neq_status status = check_scratch(scratch, scratch_bytes(parameters, count));
  if (status != NEQ_OK) return status;
  auto* jobs = static_cast<Job*>(scratch.data);
  auto* mask = reinterpret_cast<uint64_t*>(jobs + count);
  int64_t pieces = 0;
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    Job job = plan(formula, parameters[i], mask);
    if (job.pieces == 0) continue;
    job.numbers = numbers(options, parameters[i]);
    job.first_piece = pieces;
    pieces += job.pieces;
    if (job.mask) mask += mask_words(parameters[i]);
    jobs[found++] = job;
  }
  Work work{jobs, found};
  if (parallel && pieces > 1) {
    parallel->run(parallel->context, 0, pieces, kGrain, step_pieces, &work);
  } else if (pieces > 0) {
    step_pieces(&work, 0, pieces);
  }
  return NEQ_OK;
}

}  // namespace neq::rows
