// depthwise_wgrad: dw[o, r, s] = sum over n, p, q of dy[n, o, p, q] * x[n, o / multiplier, i, j],
//   i = p * stride + r * dilation - padding, likewise j, and db[o] = sum of dy[n, o, p, q],
// for the active channels alone.
//
// dy and x are staged, a band at a time, in tiles that stay in the cache: as floats (doubles), with
// the zeros of the padding, so that one loop without borders serves every type, stride and window
// (depthwise_wgrad_loops.h). There are two ways to fill vectors:
//   planes   with the positions of one channel     depthwise_wgrad_planes.cpp
//   lanes    with channels, where they lie side by side     depthwise_wgrad_lanes.cpp
// The work is cut into tasks by the sizes alone, their sums are added in order: the number of
// threads changes no bit.
#include "depthwise_wgrad.h"

#include "depthwise_wgrad_lanes.h"
#include "depthwise_wgrad_planes.h"
#include "element.h"
#include "pack_channels_geometry.h"
#include "status.h"

namespace neq::depthwise {
namespace {

const Kernels& best_kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_kernels(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

// Either of the two ways, and where in the scratch its things are.
struct Call {
  Convolution convolution;
  bool lanes;
  LanePlan lane_plan;
  PlanePlan plane_plan;
  int64_t partial_bytes;
  int64_t groups_bytes;
  int64_t index_bytes;

  Plan& plan() noexcept { return lanes ? static_cast<Plan&>(lane_plan) : plane_plan; }
  int64_t scratch_bytes() noexcept {
    if (convolution.empty()) return 0;
    // Rounded up to a cache line by as much as the caller's memory may be off one.
    return partial_bytes + groups_bytes + index_bytes + kCacheLine +
           plan().tasks * plan().tile_bytes;
  }
};

neq_status prepare(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Call* call) noexcept {
  Convolution& c = call->convolution;
  const neq_status status = understand(dy, x, width, window, dw, Groups::kDepthwise, &c);
  if (status != NEQ_OK || c.empty()) return status;
  const Kernels& kernels = best_kernels(c.dtype);
  call->lanes = has_lanes(c, width) && plan_lanes(c, kernels, width, &call->lane_plan);
  if (call->lanes) {
    const LanePlan& plan = call->lane_plan;
    call->partial_bytes = lanes_partial(plan) * 8;
    call->groups_bytes =
        2 * plan.blocks * plan.channels * static_cast<int64_t>(sizeof(pack::Group));
    const int64_t each = plan.turned ? 2 * sizeof(int64_t) : sizeof(int32_t);
    call->index_bytes = round_up(plan.channels * each, 8);
    return NEQ_OK;
  }
  if (!plan_planes(c, kernels, width, &call->plane_plan)) {
    return fail(NEQ_UNSUPPORTED,
                "window: expected a dilation whose taps are within 2^26 positions of each other");
  }
  call->partial_bytes = planes_partial(call->plane_plan) * 8;
  return NEQ_OK;
}

// Which channels get the lanes, or where they are.
void place_channels(const Convolution& c, const int32_t* index, char* memory,
                    LanePlan* plan) noexcept {
  plan->offsets = reinterpret_cast<int64_t*>(memory);
  plan->x_index = reinterpret_cast<int32_t*>(memory);
  for (int64_t i = 0; !plan->all && i < plan->count; ++i) {
    const int64_t input = index[i] / c.multiplier;
    if (plan->turned) {
      plan->offsets[i] = index[i] * c.dy.channel * plan->element;
      plan->offsets[plan->channels + i] = input * c.x.channel * plan->element;
    } else {
      plan->x_index[i] = static_cast<int32_t>(input);
    }
  }
}

void place(const neq_tensor& dy, const neq_tensor& x, const int32_t* index, neq_scratch scratch,
           Call* call) noexcept {
  Plan& plan = call->plan();
  plan.convolution = &call->convolution;
  plan.dy = static_cast<const char*>(dy.data);
  plan.x = static_cast<const char*>(x.data);
  plan.dy_end = end_of(dy);
  plan.x_end = end_of(x);
  Convolution& c = call->convolution;
  if (c.axis[0].in == 0 || c.axis[1].in == 0) {
    // Nothing of x is read, but the places of its samples are computed: not from a null pointer.
    plan.x = plan.x_end = plan.dy;
    c.x = {};
  }
  plan.index = index;
  char* at = static_cast<char*>(scratch.data);
  plan.partial = reinterpret_cast<double*>(at);
  at += call->partial_bytes;
  if (call->lanes) {
    LanePlan& lanes = call->lane_plan;
    lanes.groups = reinterpret_cast<pack::Group*>(at);
    place_channels(c, index, at + call->groups_bytes, &lanes);
    at += call->groups_bytes + call->index_bytes;
  }
  plan.tiles = first_line(at);
}

// One thread runs the tasks of a range one after the other, all in the first one's tile.
void run_tasks(void* arg, int64_t begin, int64_t end) {
  Call& call = *static_cast<Call*>(arg);
  char* const tile = call.plan().tiles + begin * call.plan().tile_bytes;
  for (int64_t task = begin; task < end; ++task) {
    if (call.lanes) {
      run_lanes(call.lane_plan, task, tile);
    } else {
      run_planes(call.plane_plan, task, tile);
    }
  }
}

struct Outputs {
  char* dw;
  char* db;
};

template <class Element>
void store_row(const Call& call, int64_t channel, int64_t i, const Outputs& outputs) noexcept {
  using Storage = typename Element::Storage;
  const Convolution& c = call.convolution;
  const int64_t blocks = call.lanes ? call.lane_plan.blocks : call.plane_plan.blocks;
  for (int64_t tap = 0; tap <= c.taps(); ++tap) {
    double sum = 0;
    for (int64_t block = 0; i >= 0 && block < blocks; ++block) {
      sum += call.lanes ? lanes_sum(call.lane_plan, block, i, channel, tap)
                        : planes_sum(call.plane_plan, block, i, tap);
    }
    auto* dw = reinterpret_cast<Storage*>(outputs.dw);
    if (tap < c.taps()) {
      dw[channel * c.dw.batch + tap / c.axis[1].kernel * c.dw.axis[0] +
         tap % c.axis[1].kernel * c.dw.axis[1]] = Element::store(sum);
    } else if (outputs.db) {
      reinterpret_cast<Storage*>(outputs.db)[channel] = Element::store(sum);
    }
  }
}

// Every element once: the sums of the active channels, zeros elsewhere.
template <class Element>
void store(const Call& call, const int32_t* index, int64_t count, const Outputs& outputs) noexcept {
  int64_t i = 0;
  for (int64_t channel = 0; channel < call.convolution.outputs; ++channel) {
    const bool active = i < count && index[i] == channel;
    store_row<Element>(call, channel, active && !call.convolution.empty() ? i : -1, outputs);
    i += active;
  }
}

void store(const Call& call, const int32_t* index, int64_t count, const Outputs& outputs) noexcept {
  switch (call.convolution.dtype) {
    case NEQ_F32:
      return store<Float>(call, index, count, outputs);
    case NEQ_F64:
      return store<Double>(call, index, count, outputs);
    case NEQ_F16:
      return store<Half>(call, index, count, outputs);
    case NEQ_BF16:
      return store<BFloat16>(call, index, count, outputs);
  }
}

}  // namespace
}  // namespace neq::depthwise

int64_t neq_depthwise_wgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                                        const neq_window* window, const neq_tensor* dw) {
  neq::depthwise::Call call{};
  if (neq::depthwise::prepare(dy, x, width, window, dw, &call) != NEQ_OK) return -1;
  return call.scratch_bytes();
}

neq_status neq_depthwise_wgrad_cpu(const neq_tensor* dy, const neq_tensor* x, const int32_t* index,
                                   int64_t width, const neq_window* window, const neq_tensor* dw,
                                   void* db, neq_scratch scratch, const neq_parallel* parallel) {
  using namespace neq::depthwise;
  Call call{};
  neq_status status = prepare(dy, x, width, window, dw, &call);
  if (status != NEQ_OK) return status;
  int64_t count = 0;
  status = neq::pack::check_index(index, width, call.convolution.outputs, &count);
  if (status == NEQ_OK) status = neq::check_scratch(scratch, call.scratch_bytes());
  if (status != NEQ_OK) return status;

  if (!call.convolution.empty() && count > 0) {
    if (call.lanes) adopt_count(&call.lane_plan, count);
    if (!call.lanes) adopt_count(&call.plane_plan, count);
    place(*dy, *x, index, scratch, &call);
    const int64_t tasks = call.plan().tasks;
    if (parallel && tasks > 1) {
      parallel->run(parallel->context, 0, tasks, 1, run_tasks, &call);
    } else {
      run_tasks(&call, 0, tasks);
    }
  }
  store(call, index, count, {static_cast<char*>(dw->data), static_cast<char*>(db)});
  return NEQ_OK;
}
