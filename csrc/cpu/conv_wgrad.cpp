// conv_wgrad: dw[i, c, r, s] = sum over n, p, q of dy[n, index[i], p, q] * x[n, c, u, v],
//   u = p * stride + r * dilation - padding, likewise v, and db[i] = sum of dy[n, index[i], p, q],
// for few active channels, of which vendor kernels compute whole vectors.
//
// Two ways: conv_wgrad_planes.cpp, and conv_wgrad_lanes.cpp for channels_last. The work is cut into
// tasks by the sizes alone, and their sums are added in order: the number of threads changes no
// bit.
#include <algorithm>

#include "conv_wgrad_plan.h"
#include "element.h"
#include "pack_channels_geometry.h"

namespace neq::conv {
namespace {

// Where the row of x for a weight starts.
void find_offsets(const Call& call) noexcept {
  const Convolution& c = call.convolution;
  for (int64_t tap = 0; tap < c.taps(); ++tap) {
    const int64_t r = tap / c.axis[1].kernel * c.axis[0].dilation;
    const int64_t s = tap % c.axis[1].kernel * c.axis[1].dilation;
    const int64_t phase = r % c.axis[0].stride * call.steps[1].phases + s % c.axis[1].stride;
    const int64_t offset = r / c.axis[0].stride * call.steps[1].pitch + s / c.axis[1].stride;
    call.offsets[tap] = (phase * call.column + offset) * call.scalar;
  }
}

// One thread runs the tasks of a range one after the other, all in the first one's tile.
void run_tasks(void* arg, int64_t begin, int64_t end) {
  const Call& call = *static_cast<const Call*>(arg);
  for (int64_t task = begin; task < end; ++task) {
    call.run(call, task, call.tiles + begin * call.tile_bytes);
  }
}

struct Outputs {
  const Call* call;
  char* dw;
  char* db;
};

template <class Element>
void store_row(const Outputs& out, int64_t i) noexcept {
  using Scalar = typename Element::Sum;
  using Storage = typename Element::Storage;
  const Call& call = *out.call;
  const Convolution& c = call.convolution;
  const int64_t blocks = i < call.count && !c.empty() ? call.blocks : 0;
  const auto* partial = reinterpret_cast<const Scalar*>(call.partial);
  const auto sum = [&](int64_t column) {
    Scalar total = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      total += partial[(b * call.width + i) * call.columns + column];
    }
    return Element::store(total);
  };
  auto* dw = reinterpret_cast<Storage*>(out.dw);
  for (int64_t channel = 0; channel < c.inputs; ++channel) {
    for (int64_t r = 0; r < c.axis[0].kernel; ++r) {
      for (int64_t s = 0; s < c.axis[1].kernel; ++s) {
        dw[i * c.dw.batch + channel * c.dw.channel + r * c.dw.axis[0] + s * c.dw.axis[1]] =
            sum(channel * call.per_channel + (r * c.axis[1].kernel + s) * call.per_tap);
      }
    }
  }
  if (out.db) reinterpret_cast<Storage*>(out.db)[i] = sum(call.columns - 1);
}

void store_rows(void* arg, int64_t begin, int64_t end) {
  const Outputs& out = *static_cast<const Outputs*>(arg);
  for (int64_t i = begin; i < end; ++i) {
    switch (out.call->convolution.dtype) {
      case NEQ_F32:
        store_row<Float>(out, i);
        break;
      case NEQ_F64:
        store_row<Double>(out, i);
        break;
      case NEQ_F16:
        store_row<Half>(out, i);
        break;
      case NEQ_BF16:
        store_row<BFloat16>(out, i);
        break;
    }
  }
}

void run(const neq_parallel* parallel, int64_t tasks, int64_t each, neq_body body, void* arg) {
  if (parallel && tasks > each) {
    parallel->run(parallel->context, 0, tasks, each, body, arg);
  } else {
    body(arg, 0, tasks);
  }
}

}  // namespace
}  // namespace neq::conv

int64_t neq_conv_wgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                                   const neq_window* window, const neq_tensor* dw) {
  neq::conv::Call call{};
  if (neq::conv::prepare(dy, x, width, window, dw, &call) != NEQ_OK) return -1;
  return call.scratch_bytes();
}

neq_status neq_conv_wgrad_cpu(const neq_tensor* dy, const neq_tensor* x, const int32_t* index,
                              int64_t width, const neq_window* window, const neq_tensor* dw,
                              void* db, neq_scratch scratch, const neq_parallel* parallel) {
  using namespace neq::conv;
  Call call{};
  neq_status status = prepare(dy, x, width, window, dw, &call);
  if (status != NEQ_OK) return status;
  status = neq::pack::check_index(index, width, call.convolution.outputs, &call.count);
  if (status == NEQ_OK) status = neq::check_scratch(scratch, call.scratch_bytes());
  if (status != NEQ_OK) return status;

  if (call.scratch_bytes() > 0 && call.count > 0) {
    call.dy = static_cast<const char*>(dy->data);
    call.x = static_cast<const char*>(x->data);
    call.dy_end = neq::end_of(*dy);
    call.x_end = neq::end_of(*x);
    call.index = index;
    char* const at = neq::first_line(static_cast<char*>(scratch.data));
    call.offsets = reinterpret_cast<int64_t*>(at);
    call.partial = at + call.offset_bytes();
    call.tiles = call.partial + call.partial_bytes();
    if (call.run == run_planes) find_offsets(call);
    run(parallel, call.tasks(), 1, run_tasks, &call);
  } else {
    call.count = 0;
  }
  // A thread's worth of sums; waking another costs as much as some thousands.
  const int64_t row = std::max<int64_t>(call.columns * call.blocks, 1);
  Outputs outputs = {&call, static_cast<char*>(dw->data), static_cast<char*>(db)};
  run(parallel, width, std::max<int64_t>((int64_t{1} << 14) / row, 1), store_rows, &outputs);
  return NEQ_OK;
}
