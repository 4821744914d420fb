// depthwise_wgrad: dw[o, r, s] = sum over n, p, q of dy[n, o, p, q] * x[n, o / multiplier, i, j],
//   i = p * stride + r * dilation - padding, likewise j, and db[o] = sum of dy[n, o, p, q],
// for the active channels alone.
//
// There are three ways to fill vectors:
//   rows     with neighbours of a row, where planes lie in memory (NCHW)   depthwise_wgrad_rows.cpp
//   lanes    with channels, where they lie side by side (channels_last) depthwise_wgrad_lanes.cpp
//   staged   with a plane's positions, copied first: whatever the strides
//   depthwise_wgrad_staged.cpp
// The work is cut into tasks by the sizes alone, their sums are added in order: the number of
// threads changes no bit.
#include "depthwise_wgrad.h"

#include <cstring>

#include "depthwise_wgrad_lanes.h"
#include "depthwise_wgrad_rows.h"
#include "depthwise_wgrad_staged.h"
#include "element.h"
#include "pack_channels_geometry.h"
#include "status.h"

namespace neq::depthwise {
namespace {

enum class Way { kRows, kLanes, kStaged };

// One of the three ways, and how much of the scratch its things take.
struct Call {
  Convolution convolution;
  Way way;
  RowsPlan rows;
  LanesPlan lanes;
  StagedPlan staged;

  Plan& plan() noexcept {
    return way == Way::kRows    ? static_cast<Plan&>(rows)
           : way == Way::kLanes ? static_cast<Plan&>(lanes)
                                : static_cast<Plan&>(staged);
  }
  int64_t lists_bytes() const noexcept { return way == Way::kLanes ? lanes.lists_bytes() : 0; }
  int64_t scratch_bytes() noexcept {
    if (convolution.empty()) return 0;
    // Rounded up to a cache line by as much as the caller's memory may be off one.
    return plan().partial_count() * 8 + lists_bytes() + kCacheLine +
           plan().tasks * plan().tile_bytes;
  }
  void adopt_count(int64_t count) noexcept {
    if (way == Way::kRows) return rows.adopt_count(count);
    if (way == Way::kLanes) return lanes.adopt_count(count);
    staged.adopt_count(count);
  }
};

neq_status prepare(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                   const neq_window* window, const neq_tensor* dw, Call* call) noexcept {
  Convolution& c = call->convolution;
  const neq_status status = understand(dy, x, width, window, dw, Groups::kDepthwise, &c);
  if (status != NEQ_OK || c.empty()) return status;
  call->way = Way::kLanes;
  if (LanesPlan::suits(c) && call->lanes.prepare(c, width)) return NEQ_OK;
  if (RowsPlan::suits(c)) {
    call->way = Way::kRows;
    call->rows.prepare(c, width);
    return NEQ_OK;
  }
  call->way = Way::kStaged;
  if (call->staged.prepare(c, width)) return NEQ_OK;
  return fail(NEQ_UNSUPPORTED,
              "window: expected a dilation whose taps are within 2^26 positions of each other");
}

void place(const neq_tensor& dy, const neq_tensor& x, const int32_t* index, neq_scratch scratch,
           Call* call) noexcept {
  Plan& plan = call->plan();
  plan.dy = static_cast<const char*>(dy.data);
  plan.x = static_cast<const char*>(x.data);
  plan.dy_memory = {plan.dy, end_of(dy)};
  plan.x_memory = {plan.x, end_of(x)};
  Convolution& c = call->convolution;
  if (c.axis[0].in == 0 || c.axis[1].in == 0) {
    // Nothing of x is read, but the places of its samples are computed: not from a null pointer.
    plan.x = plan.dy;
    plan.x_memory = {plan.dy, plan.dy};
    c.x = {};
  }
  plan.index = index;
  char* at = static_cast<char*>(scratch.data);
  plan.partial = reinterpret_cast<double*>(at);
  at += plan.partial_count() * 8;
  const int64_t lists = call->lists_bytes();
  if (call->way == Way::kLanes) call->lanes.place_lists(at);
  plan.tiles = first_line(at + lists);
}

// One thread runs the tasks of a range one after the other, all in the first one's tile.
void run_tasks(void* arg, int64_t begin, int64_t end) {
  Call& call = *static_cast<Call*>(arg);
  char* const tile = call.plan().tiles + begin * call.plan().tile_bytes;
  for (int64_t task = begin; task < end; ++task) {
    if (call.way == Way::kRows) call.rows.run(task, tile);
    if (call.way == Way::kLanes) call.lanes.run(task, tile);
    if (call.way == Way::kStaged) call.staged.run(task, tile);
  }
}

struct Outputs {
  char* dw;
  char* db;
};

// sums[tap * lanes], or, without them, zeros.
template <class Element>
void store_row(const Convolution& c, int64_t channel, const double* sums, int64_t lanes,
               const Outputs& outputs) noexcept {
  using Storage = typename Element::Storage;
  Storage* row = reinterpret_cast<Storage*>(outputs.dw) + channel * c.dw.batch;
  for (int64_t r = 0; r < c.axis[0].kernel; ++r, row += c.dw.axis[0]) {
    for (int64_t s = 0; s < c.axis[1].kernel; ++s, sums += sums ? lanes : 0) {
      row[s * c.dw.axis[1]] = Element::store(sums ? *sums : 0.0);
    }
  }
  if (outputs.db) {
    reinterpret_cast<Storage*>(outputs.db)[channel] = Element::store(sums ? *sums : 0.0);
  }
}

// Whether dw's rows follow each other without a gap.
bool dense(const Convolution& c) noexcept {
  const int64_t wide = c.axis[1].kernel;
  return c.dw.batch == c.taps() && (c.axis[0].kernel == 1 || c.dw.axis[0] == wide) &&
         (wide == 1 || c.dw.axis[1] == 1);
}

// Every element: the sums of the active channels, zeros elsewhere.
template <class Element>
void store(Call& call, const int32_t* index, int64_t count, const Outputs& outputs) noexcept {
  const Convolution& c = call.convolution;
  const Plan* const plan = c.empty() ? nullptr : &call.plan();
  if (!plan) count = 0;
  const bool zeroed = dense(c);
  if (zeroed && c.outputs > 0) {
    const int64_t bytes = c.outputs * static_cast<int64_t>(sizeof(typename Element::Storage));
    std::memset(outputs.dw, 0, bytes * c.taps());
    if (outputs.db) std::memset(outputs.db, 0, bytes);
  }
  int64_t i = 0;
  for (int64_t channel = 0; !zeroed && channel < c.outputs; ++channel) {
    const bool active = i < count && index[i] == channel;
    if (!active) store_row<Element>(c, channel, nullptr, 0, outputs);
    i += active;
  }
  for (i = 0; i < count; ++i) {
    store_row<Element>(c, index[i], plan->add_blocks(i, index[i]), plan->lanes, outputs);
  }
}

void store(Call& call, const int32_t* index, int64_t count, const Outputs& outputs) noexcept {
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
    call.adopt_count(count);
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
