// How a call of pack_channels is laid out on the device: which walk, how wide the vectors, how many
// parts. By sizes, strides, addresses and the device alone.
#include <algorithm>

#include "cuda/pack_channels.cuh"

namespace neq::cuda {
namespace {

constexpr int64_t kMaxParts = 1024;
constexpr int64_t kMaxInPart = INT32_MAX / 2;  // counted in 32 bits

int64_t outer_positions(const Outer& outer) {
  int64_t positions = 1;
  for (int32_t d = 0; d < outer.count; ++d) positions *= outer.dims[d].size;
  return positions;
}

// All that must be a multiple of a word's bytes for words to be written, and read if `reads`.
uint64_t alignment_bits(const Job& job, bool reads) {
  auto bits = reinterpret_cast<uintptr_t>(job.target);
  if (reads) bits |= reinterpret_cast<uintptr_t>(job.source);
  for (int32_t d = 0; d < job.outer.count; ++d) {
    bits |= static_cast<uint64_t>(job.outer.dims[d].target);
    if (reads) bits |= static_cast<uint64_t>(job.outer.dims[d].source);
  }
  return bits;
}

// Pieces of at most a block's threads, as equal as can be, then as many rows as still fit.
void plan_rows(int64_t element, Plan* plan) {
  Job& job = plan->job;
  const uint64_t bits = alignment_bits(job, false) | static_cast<uint64_t>(job.width * element);
  const bool pairs = element == 2 && job.outer.count <= 1 && common_alignment(bits) >= 4;
  plan->elements = pairs ? 2 : 1;
  const int64_t words = job.width / plan->elements;
  plan->pieces = divide_up(words, kThreads);
  plan->across = static_cast<int>(divide_up(words, plan->pieces));
  plan->down = kThreads / plan->across;
  job.positions = outer_positions(job.outer);
}

void plan_runs(int64_t element, Plan* plan) {
  Job& job = plan->job;
  const uint64_t bits = alignment_bits(job, true) |
                        static_cast<uint64_t>(job.channel.source | job.channel.target) |
                        static_cast<uint64_t>(job.run.size * element);
  const bool dense = job.run.source == element && job.run.target == element &&
                     (job.outer.count <= 1 || job.run.size * element > 16 * kThreads);
  const int64_t widest = dense ? common_alignment(bits) : element;
  const int64_t bytes = widest == 16 ? 16 : widest >= 4 ? std::max<int64_t>(element, 4) : element;
  const int64_t n = bytes / element;
  job.run = {job.run.size / n, job.run.source * n, job.run.target * n};
  job.positions = outer_positions(job.outer);
  plan->elements = static_cast<int>(n);
  plan->pieces = job.width;
  if (job.run.size > kThreads) {
    const int64_t step = kThreads * in_flight(bytes);
    plan->walk = Walk::kLongRuns;
    plan->across = kThreads;
    plan->down = 1;
    const int64_t steps = divide_up(job.run.size, step);
    job.steps = Divisor(steps);
    job.positions *= steps;
  } else {
    plan->walk = Walk::kPlanes;
    plan->across = static_cast<int>(std::max<int64_t>(job.run.size, 1));
    plan->down = kThreads / plan->across;
  }
}

// As many as fill the device twice over, if each then has work for more than one turn.
int64_t parts_of(const Plan& plan, const Device& device) {
  const int64_t fill =
      int64_t{device.multiprocessors} * (device.threads_per_multiprocessor / kThreads);
  const int64_t turn = plan.walk == Walk::kLongRuns ? 1 : kRows * plan.down;
  const int64_t most = std::min(2 * fill / plan.pieces, plan.job.positions / turn);
  return std::clamp<int64_t>(most, 1, kMaxParts);
}

}  // namespace

neq_status plan_of(const neq_tensor* dy, int32_t dim, const neq_tensor* packed, const void* bias,
                   Plan* plan) {
  if (const neq_status status = pack::check_tensors(dy, dim, packed)) return status;
  for (const neq_tensor* tensor : {dy, packed}) {
    if (reinterpret_cast<uintptr_t>(tensor->data) % element_bytes(tensor->dtype) != 0) {
      return fail(NEQ_INVALID_ARGUMENT, "%s: expected an address aligned to its elements, got %p",
                  tensor == dy ? "dy" : "packed", tensor->data);
    }
  }
  Device device;
  if (const neq_status status = current_device(&device)) return status;
  const pack::Geometry geometry = pack::understand(*dy, dim, *packed);
  *plan = {};
  Job& job = plan->job;
  job.source = static_cast<const char*>(dy->data);
  job.target = static_cast<char*>(packed->data);
  job.bias = const_cast<void*>(bias);
  job.channels = geometry.channels;
  job.width = geometry.width;
  job.channel = geometry.channel;
  job.run = geometry.run;
  job.outer.count = geometry.outer_dims;
  std::copy_n(geometry.outer, geometry.outer_dims, job.outer.dims);
  if (job.width == 0) return NEQ_OK;
  // Neighbouring channels with gaps between them, too, are better gathered along the row.
  const bool gaps = geometry.walk == pack::Walk::kStrided &&
                    job.channel.target == geometry.element && job.channel.source <= job.run.source;
  if (geometry.walk == pack::Walk::kRows || gaps) {
    if (gaps) job.outer.dims[job.outer.count++] = job.run;
    plan_rows(geometry.element, plan);
  } else {
    plan_runs(geometry.element, plan);
  }
  for (int32_t d = 0; d < job.outer.count; ++d)
    job.outer.sizes[d] = Divisor(job.outer.dims[d].size);
  job.parts = parts_of(*plan, device);
  job.in_part = job.positions / job.parts;
  job.larger = job.positions % job.parts;
  if (job.in_part > kMaxInPart) {
    return fail(NEQ_UNSUPPORTED, "dy: expected fewer than %lld positions of a channel, got %lld",
                static_cast<long long>(kMaxInPart * job.parts),
                static_cast<long long>(job.positions));
  }
  return NEQ_OK;
}

int64_t scratch_bytes(const Plan& plan) {
  const Job& job = plan.job;
  return job.bias && job.parts > 1 ? job.parts * job.width * int64_t{sizeof(double)} : 0;
}

}  // namespace neq::cuda
