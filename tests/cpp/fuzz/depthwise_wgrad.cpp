// neq_depthwise_wgrad_cpu on right and wrong arguments.
#include "convolution.h"

namespace {

int64_t random_outputs(Input& input, int64_t inputs) { return inputs * input.between(1, 3); }

void set_rows(Call* call) {
  call->dw.size[0] = call->dy.size[1];
  call->dw.size[1] = 1;
}

Right judge_channels(const Call& call) {
  const int64_t outputs = call.dy.size[1];
  const int64_t inputs = call.x.size[1];
  if (inputs == 0 ? outputs != 0 : outputs % inputs != 0) return Right::kNo;
  return right_if(call.dw.size[0] == outputs && call.dw.size[1] == 1);
}

Right judge_limits(const Call&) { return Right::kYes; }

int64_t output_of(const Call& call, int64_t row) {
  return std::count(call.index.begin(), call.index.begin() + call.width, row) ? row : -1;
}

int64_t input_of(const Call& call, int64_t row) { return row / (call.dy.size[1] / call.x.size[1]); }

}  // namespace

void fuzz(Input& input) {
  fuzz_convolution({neq_depthwise_wgrad_cpu, neq_depthwise_wgrad_cpu_scratch, random_outputs,
                    set_rows, judge_channels, judge_limits, output_of, input_of},
                   input);
}
