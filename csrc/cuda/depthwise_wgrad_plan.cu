// How a call of depthwise_wgrad is laid out on the device: how threads stand, how many parts. By
// sizes, strides and the device alone.
#include <algorithm>

#include "cuda/depthwise_wgrad.cuh"

namespace neq::depthwise {
namespace {

constexpr int kTurns = 4;  // of a block over its lines, at least, before they are cut
constexpr int64_t kMaxParts = 1024;

Cut cut(int64_t total, int64_t parts) { return {parts, total / parts, total % parts}; }

// Channels side by side, columns, then lines: by what is contiguous.
void arrange(const Convolution& c, Job* job) {
  const bool dy_lanes = c.dy.channel < c.dy.axis[1];
  const bool x_lanes = c.x.channel < c.x.axis[1];
  const int64_t lanes = dy_lanes && x_lanes ? 32 : dy_lanes || x_lanes ? 8 : 1;
  job->lanes = 1;
  while (job->lanes < lanes && job->lanes < job->width) job->lanes *= 2;
  const int64_t left = kThreads / job->lanes;
  const int64_t turns = divide_up(c.axis[1].out, left);
  job->across = static_cast<int32_t>(divide_up(c.axis[1].out, turns));
  job->down = static_cast<int32_t>(left / job->across);
  job->down_samples = static_cast<int32_t>(job->down / c.axis[0].out);
  job->down_rows = job->down % c.axis[0].out;
}

// As many parts as fill the device twice over, if each then has work for a few turns.
void cut_positions(const Convolution& c, int64_t blocks, const Device& device, Job* job) {
  const int64_t fill =
      int64_t{device.multiprocessors} * (device.threads_per_multiprocessor / kThreads);
  const int64_t most = std::clamp<int64_t>(2 * fill / blocks, 1, kMaxParts);
  const int64_t lines = c.batch * c.axis[0].out;
  const int64_t of_lines = std::clamp<int64_t>(lines / (int64_t{kTurns} * job->down), 1, most);
  const int64_t of_columns = std::clamp<int64_t>(c.axis[1].out / job->across, 1, most / of_lines);
  job->lines = cut(lines, of_lines);
  job->columns = cut(c.axis[1].out, of_columns);
  job->column_parts = Divisor(of_columns);
  job->parts = of_lines * of_columns;
}

}  // namespace

neq_status check_alignment(const char* name, const void* data, int32_t dtype) {
  if (reinterpret_cast<uintptr_t>(data) % element_bytes(dtype) == 0) return NEQ_OK;
  return fail(NEQ_INVALID_ARGUMENT, "%s: expected an address aligned to its elements, got %p", name,
              data);
}

neq_status plan_of(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Plan* plan) {
  *plan = {};
  Job& job = plan->job;
  Convolution& c = job.convolution;
  neq_status status = understand(dy, x, width, window, dw, Groups::kDepthwise, &c);
  if (status == NEQ_OK) status = check_alignment("dy", dy->data, c.dtype);
  if (status == NEQ_OK) status = check_alignment("x", x->data, c.dtype);
  if (status == NEQ_OK) status = check_alignment("dw", dw->data, c.dtype);
  Device device;
  if (status == NEQ_OK) status = current_device(&device);
  if (status != NEQ_OK) return status;

  job.dy = static_cast<const char*>(dy->data);
  job.x = static_cast<const char*>(x->data);
  job.dw = static_cast<char*>(dw->data);
  job.width = width;
  job.slots = Divisor(c.taps() + 1);
  if (c.empty() || width == 0) return NEQ_OK;
  plan->tall = c.axis[0].kernel > 1;
  const int64_t wide = divide_up(c.axis[1].kernel, plan->tall ? 3 : 4);
  const int64_t tiles = wide * (plan->tall ? divide_up(c.axis[0].kernel, 3) : 1);
  job.tiles = Divisor(tiles);
  job.tiles_wide = Divisor(wide);
  job.rows = Divisor(c.axis[0].out);
  arrange(c, &job);
  plan->blocks = divide_up(width, job.lanes) * tiles;
  cut_positions(c, plan->blocks, device, &job);
  int64_t bytes = 0;
  if (plan->blocks > INT32_MAX ||
      __builtin_mul_overflow(width * (c.taps() + 1), job.parts * int64_t{sizeof(double)}, &bytes)) {
    return fail(NEQ_UNSUPPORTED,
                "width: expected up to 2^31 active channels and tiles of weights, "
                "got %lld",
                static_cast<long long>(plan->blocks));
  }
  return NEQ_OK;
}

int64_t scratch_bytes(const Job& job) {
  return job.width * job.slots.value() * job.parts * int64_t{sizeof(double)};
}

}  // namespace neq::depthwise
