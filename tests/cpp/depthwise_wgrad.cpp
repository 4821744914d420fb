// neq_depthwise_wgrad_cpu against a loop nest.
#include "depthwise_wgrad.h"

#include "convolution_cpu.h"

namespace {

using namespace depthwise_wgrad;

const Function kFunction = {neq_depthwise_wgrad_cpu, neq_depthwise_wgrad_cpu_scratch,
                            [](const Problem& problem, int64_t) { return outputs_for(problem); },
                            check_result};

void check_refusals() {
  const Refusals refusals(kFunction, 4, 1);
  refusals.check_common();
  for (const int64_t inputs : {0, 3, 8}) {
    refusals.refused("x: expected channels that", [=](Arguments& wrong) {
      wrong.x.size[1] = inputs;
      wrong.x.stride[0] = 0;
    });
  }
  refusals.refused("dw: expected shape [4, 1",
                   [](Arguments& wrong) { wrong.dw.size[0] = wrong.dw.size[1] = 2; });
  // Outputs that meet the input with their middle weights alone, 2^30 to either side, in planes
  // that have to be staged.
  const int64_t far = int64_t{1} << 30;
  refusals.refused("window: expected a dilation whose", [=](Arguments& wrong) {
    wrong.window = {{1, 1}, {far, 1}, {far, 1}};
    wrong.x.stride[2] = 1;
    wrong.x.stride[3] = 5;
  });
}

}  // namespace

int main() {
  check_shapes(kFunction, depthwise_shapes());
  check_refusals();
  check_input_of_padding(kFunction, 4, 1);
  std::puts("depthwise_wgrad: ok");
}
