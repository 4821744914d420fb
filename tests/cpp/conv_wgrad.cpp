// neq_conv_wgrad_cpu against a loop nest.
#include "convolution_cpu.h"

namespace {

using namespace convolution;

void check_result(const Problem& problem, const std::vector<int32_t>& index, const Result& result) {
  for (int64_t o = 0; o < problem.outputs(); ++o) {
    const bool active = std::find(index.begin(), index.end(), o) != index.end();
    check_row(problem, result, o, active ? o : -1, 0);
  }
}

const Function kFunction = {neq_conv_wgrad_cpu, neq_conv_wgrad_cpu_scratch,
                            [](const Problem& problem, int64_t) {
                              return rows_for(problem, problem.outputs(), problem.shape.inputs);
                            },
                            check_result};

std::vector<Shape> shapes() {
  std::vector<Shape> shapes;
  for (const Order order : {kPlanes, kLast, kMixed}) {
    const std::vector<Shape> all = {
        {5, 7, 9, {8, 9}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {3, 10, 7, {7, 7}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},   // rows that lie together
        {2, 5, 4, {6, 5}, {1, 1}, {1, 1}, {1, 2}, {1, 1}, order},    // and rows that do not
        {90, 4, 3, {3, 3}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},   // several chunks of samples
        {2, 2, 3, {40, 31}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // planes beyond a chunk
        {2, 150, 3, {9, 9}, {3, 2}, {1, 1}, {1, 1}, {1, 1}, order},  // more channels than staged
        {4, 70, 12, {6, 6}, {1, 2}, {1, 1}, {0, 0}, {1, 1}, order},
        // Several tasks: of channels, whose rows are staged for all of them, of rows, of positions.
        {1, 256, 96, {8, 8}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {3, 96, 9, {12, 12}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {8, 64, 1, {16, 16}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},  // two chunks for two tasks
        {3, 6, 5, {14, 13}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, order},   // phases
        {2, 5, 5, {13, 20}, {3, 2}, {5, 7}, {2, 0}, {2, 1}, order},   // a stride beyond the kernel
        {2, 4, 5, {15, 15}, {3, 3}, {2, 2}, {2, 2}, {2, 2}, order},   // a phase that is skipped
        {1, 2, 3, {30, 30}, {3, 3}, {7, 8}, {1, 1}, {9, 11}, order},  // and many that are
        {1, 3, 20, {20, 20}, {7, 5}, {1, 2}, {3, 2}, {1, 1}, order},  // many weights
        {2, 3, 4, {4, 4}, {3, 3}, {1, 1}, {5, 4}, {1, 1}, order},     // more padding than input
        {2, 3, 4, {2, 1}, {2, 1}, {3, 3}, {4, 1}, {1, 1}, order},     // outputs of padding alone
        {1, 1, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {2, 1, 3, {6, 70}, {1, 3}, {1, 1}, {0, 1}, {1, 1}, order},  // one channel
        {3, 9, 6, {33}, {4}, {1}, {3}, {1}, order},                 // sequences
        {1, 2, 4, {2500}, {3}, {2}, {1}, {4}, order},
        {2, 70, 4, {70}, {3}, {3}, {2}, {1}, order},
        {2, 3, 4, {20, 19}, {1, 1}, {1, 1}, {3, 4}, {1, 1}, order},  // padding beyond the reach
        // Enough channels to be lanes: windows, rows cut in pieces, whole vectors and ends.
        {2, 9, 5, {13, 20}, {3, 2}, {5, 7}, {2, 0}, {2, 1}, order},
        {2, 16, 5, {15, 15}, {3, 3}, {2, 2}, {2, 2}, {2, 2}, order},
        {2, 9, 4, {4, 4}, {3, 3}, {1, 1}, {5, 4}, {1, 1}, order},
        {1, 17, 20, {20, 20}, {7, 5}, {1, 2}, {3, 2}, {1, 1}, order},
        {2, 11, 3, {3, 300}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {1, 8, 3, {2, 700}, {1, 3}, {1, 2}, {0, 1}, {1, 2}, order},
        {1, 9, 3, {40}, {1}, {2}, {0}, {1}, order},  // one row, of which every other pixel is met
        {0, 4, 3, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // an empty batch
        {2, 0, 3, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // no inputs: the bias alone
        {2, 3, 0, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
    };
    shapes.insert(shapes.end(), all.begin(), all.end());
  }
  return shapes;
}

// A list of padding alone, whose rows are zeros.
void check_padding_of_the_list() {
  std::mt19937 random(3);
  for (const Order order : {kPlanes, kLast}) {
    const Problem problem({2, 3, 4, {5, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order}, NEQ_F16,
                          random);
    const std::vector<int32_t> index = {-1, -1};
    check_result(problem, index, compute(kFunction, problem, index, nullptr));
  }
}

// One output, between the paddings; the input it would begin with is 2^63 bytes away.
void check_output_of_padding() {
  const Refusals refusals(kFunction, 4, 4);
  Arguments call = refusals.right;
  std::vector<float> out(4 * 4, 5.0f);
  call.dy.size[2] = call.dy.size[3] = call.x.size[2] = call.x.size[3] = 1;
  call.x.stride[2] = call.x.stride[3] = int64_t{1} << 59;
  call.dw = {out.data(), NEQ_F32, 4, {4, 4, 1, 1}, {4, 1, 1, 1}};
  call.window = {{3, 3}, {1, 1}, {1, 1}};
  for (const int64_t channel : {25, 1}) {
    call.x.stride[1] = channel;
    std::fill(out.begin(), out.end(), 5.0f);
    CHECK(call.call(kFunction) == NEQ_OK);
    CHECK(std::count(out.begin(), out.end(), 0.0f) == 16);
  }
}

// Each too large by one of its factors, most of them also by a product beyond 64 bits.
void check_tiles(const Refusals& refusals) {
  const auto refused = [&](auto change) { refusals.refused("tiles of less than 2^30", change); };
  refused([](Arguments& wrong) {  // one output, of weights far apart
    wrong.window = {{1, 1}, {1 << 30, 1}, {1 << 30, 1}};
  });
  refused([](Arguments& wrong) {  // in both dimensions
    wrong.window = {{1, 1}, {INT32_MAX, INT32_MAX}, {INT32_MAX, INT32_MAX}};
  });
  refused([](Arguments& wrong) {  // as many outputs
    wrong.window = {{1, 1}, {1 << 30, 1}, {1, 1}};
    wrong.dy.size[2] = (int64_t{1} << 31) + 3;
    wrong.dy.stride[2] = 0;
  });
  refused([](Arguments& wrong) {  // rows of them
    wrong.window = {{1, 1}, {1 << 19, 1}, {1, 1}};
    wrong.dy = {wrong.dy.data, NEQ_F32, 4, {2, 4096, (1 << 20) + 3, 5}, {0, 0, 0, 1}};
    wrong.dw.size[0] = wrong.width = 4096;
  });
  refused([](Arguments& wrong) {  // phases of them
    wrong.window = {{8, 8}, {1 << 20, 1 << 10}, {1, 1}};
    wrong.dy.size[2] = 1 << 18;
    wrong.dy.size[3] = 1 << 8;
    wrong.dy.stride[2] = wrong.dy.stride[3] = 0;
    wrong.dw = {wrong.dw.data, NEQ_F32, 4, {4, 4, 8, 8}, {256, 64, 8, 1}};
  });
  refused([](Arguments& wrong) {  // columns
    const int64_t inputs = 1 << 28;
    wrong.x.size[1] = wrong.dw.size[1] = inputs;
    wrong.x.stride[1] = 0;
    wrong.dw.stride[0] = 9 * inputs;
  });
  refused([](Arguments& wrong) {  // sums of rows of them, beyond 64 bits; channels_last
    const int64_t inputs = 1 << 26;
    const int64_t outputs = INT32_MAX;
    wrong.window = {{1, 1}, {0, 0}, {1, 1}};
    wrong.dy = {wrong.dy.data, NEQ_F32, 4, {2, outputs, 3, 3}, {0, 1, 0, 0}};
    wrong.x = {wrong.x.data, NEQ_F32, 4, {2, inputs, 3, 3}, {0, 1, 0, 0}};
    wrong.dw = {wrong.dw.data, NEQ_F32, 4, {outputs, inputs, 1, 1}, {inputs, 1, 1, 1}};
    wrong.width = outputs;
  });
}

void check_refusals() {
  const Refusals refusals(kFunction, 4, 4);
  refusals.check_common();
  refusals.refused("dw: expected shape [4, 4", [](Arguments& wrong) { wrong.dw.size[0] = 2; });
  refusals.refused("dw: expected shape [4, 3", [](Arguments& wrong) { wrong.x.size[1] = 3; });
  refusals.refused("x in at most 64 phases", [](Arguments& wrong) {
    wrong.window = {{9, 8}, {4, 4}, {4, 4}};
    wrong.dy.size[2] = wrong.dy.size[3] = 1;
  });
  check_tiles(refusals);
}

}  // namespace

int main() {
  check_shapes(kFunction, shapes());
  check_padding_of_the_list();
  check_input_of_padding(kFunction, 4, 4);
  check_output_of_padding();
  check_refusals();
  std::puts("conv_wgrad: ok");
}
