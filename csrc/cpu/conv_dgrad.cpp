// conv_dgrad: dx[n, c, u, v] = sum over i, r, s of weight[index[i], c, r, s] * dy[n, index[i], p,
// q]
//   with p * stride + r * dilation - padding = u, likewise q, s and v,
// for few active channels, of which vendor kernels compute whole vectors, after long preparations.
//
// With a stride, dx falls into phases that meet different weights; each is a product of weights
// with what is staged of dy. Two ways: conv_dgrad_planes.cpp, and conv_dgrad_pixels.cpp for
// channels_last. The work is cut into tasks by the sizes alone, and each element of dx belongs to
// one of them: the number of threads changes no bit.
#include "conv_dgrad_block.h"
#include "pack_channels_geometry.h"

namespace neq::dgrad {
namespace {

// Phase by phase, in the order in which both ways add up their weights.
void find_offsets(const Call& call) noexcept {
  const Convolution& c = call.convolution;
  const int64_t pixel = call.pixels ? call.count : 1;
  int64_t at = 0;
  for (int64_t phase = 0; phase < call.phases(); ++phase) {
    const Phase& a = call.tall(phase);
    const Phase& b = call.wide(phase);
    for (int64_t tap = 0; tap < a.taps * b.taps; ++tap, ++at) {
      const int64_t i = tap / b.taps;
      const int64_t j = tap % b.taps;
      const int64_t row = a.first_shift - i * call.side[0].drop - call.side[0].lowest;
      const int64_t column = b.first_shift - j * call.side[1].drop - call.side[1].lowest;
      call.weight_offsets[at] = (a.first + i * call.side[0].period) * c.dw.axis[0] +
                                (b.first + j * call.side[1].period) * c.dw.axis[1];
      call.staged_offsets[at] = (row * call.pitch + column) * pixel;
    }
  }
}

void run_tasks(void* arg, int64_t begin, int64_t end) {
  const Call& call = *static_cast<const Call*>(arg);
  call.run(call, begin, end);
}

}  // namespace
}  // namespace neq::dgrad

int64_t neq_conv_dgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* weight, int64_t width,
                                   const neq_window* window, const neq_tensor* dx) {
  neq::dgrad::Call call{};
  if (neq::dgrad::prepare(dy, weight, width, window, dx, &call) != NEQ_OK) return -1;
  return call.scratch_bytes();
}

neq_status neq_conv_dgrad_cpu(const neq_tensor* dy, const neq_tensor* weight, const int32_t* index,
                              int64_t width, const neq_window* window, const neq_tensor* dx,
                              neq_scratch scratch, const neq_parallel* parallel) {
  using namespace neq::dgrad;
  Call call{};
  neq_status status = prepare(dy, weight, width, window, dx, &call);
  if (status != NEQ_OK) return status;
  status = neq::pack::check_index(index, width, call.convolution.outputs, &call.count);
  if (status == NEQ_OK) status = neq::check_scratch(scratch, call.scratch_bytes());
  if (status != NEQ_OK || !call.run) return status;

  call.dy = static_cast<const char*>(dy->data);
  call.weight = static_cast<const char*>(weight->data);
  call.dx = static_cast<char*>(dx->data);
  call.dy_end = neq::end_of(*dy);
  call.weight_end = neq::end_of(*weight);
  call.index = index;
  char* const at = neq::first_line(static_cast<char*>(scratch.data));
  call.weight_offsets = reinterpret_cast<int64_t*>(at);
  call.staged_offsets = reinterpret_cast<int64_t*>(at + call.offset_bytes());
  call.panels = at + 2 * call.offset_bytes();
  call.tiles = call.panels + call.panel_bytes();
  find_offsets(call);
  if (parallel && call.tasks() > 1) {
    parallel->run(parallel->context, 0, call.tasks(), 1, run_tasks, &call);
  } else {
    run_tasks(&call, 0, call.tasks());
  }
  return NEQ_OK;
}
