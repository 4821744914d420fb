// neq_conv_wgrad_cpu on right and wrong arguments.
#include "convolution.h"

namespace {

int64_t random_outputs(Input& input, int64_t) {
  return input.between(0, input.once_in(3) ? 30 : 6);
}

void set_rows(Call* call) {
  call->dw.size[0] = call->dy.size[1];
  call->dw.size[1] = call->x.size[1];
}

Right judge_channels(const Call& call) {
  return right_if(call.dw.size[0] == call.dy.size[1] && call.dw.size[1] == call.x.size[1]);
}

// At most 64 phases, and tiles that are not too large, of what has anything to sum.
Right judge_limits(const Call& call) {
  Wide phases = 1;
  Wide tile = 1;
  Wide columns = call.x.size[1];
  bool empty = call.width == 0 || call.dy.size[0] == 0;
  for (int32_t d = 0; d < call.dy.ndim - 2; ++d) {
    const Wide stride = call.window.stride[d];
    const Wide reach = Wide{call.window.dilation[d]} * (call.dw.size[2 + d] - 1);
    phases *= std::min(stride, reach + 1);
    tile = std::min(tile * (call.dy.size[2 + d] + reach / stride), Wide{1} << 60);
    columns = std::min(columns * call.dw.size[2 + d], Wide{1} << 60);
    empty |= call.dy.size[2 + d] == 0;
  }
  if (empty) return Right::kYes;
  if (phases > 64) return Right::kNo;
  const bool large = std::max(tile * call.width * phases, columns) > (Wide{1} << 24);
  return large ? Right::kMaybe : Right::kYes;
}

int64_t output_of(const Call& call, int64_t row) {
  return std::count(call.index.begin(), call.index.begin() + call.width, row) ? row : -1;
}

int64_t input_of(const Call&, int64_t) { return 0; }

}  // namespace

void fuzz(Input& input) {
  fuzz_convolution({neq_conv_wgrad_cpu, neq_conv_wgrad_cpu_scratch, random_outputs, set_rows,
                    judge_channels, judge_limits, output_of, input_of},
                   input);
}
