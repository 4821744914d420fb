// neq_row_sgd_cuda and neq_row_adamw_cuda on the emulated device, against a loop in double.
#include "cuda_emulation.h"
#include "row_step.h"

namespace {

using namespace row_step;
namespace emulation = neq::emulation;

neq_status call(const neq_sgd& options, const neq_row_parameter* parameters, int64_t n) {
  return neq_row_sgd_cuda(&options, parameters, n, nullptr);
}
neq_status call(const neq_adamw& options, const neq_row_parameter* parameters, int64_t n) {
  return neq_row_adamw_cuda(&options, parameters, n, nullptr);
}

template <class Options>
neq_status step(const Options& options, std::vector<Parameter>& parameters) {
  std::vector<neq_row_parameter> views;
  for (Parameter& parameter : parameters) {
    parameter.connect();
    views.push_back(parameter.view);
  }
  return call(options, views.data(), static_cast<int64_t>(views.size()));
}

std::vector<uint8_t> bytes_of(const std::vector<Parameter>& parameters) {
  std::vector<uint8_t> all;
  for (const Parameter& parameter : parameters) {
    for (int t = 0; t < parameter.tensors; ++t) {
      all.insert(all.end(), parameter.memory[t].begin(), parameter.memory[t].end());
    }
  }
  return all;
}

// All layouts in one call; their indices padded as layers pad theirs, which the kernels skip.
template <class Options>
void check_options(const Options& options, neq_dtype dtype, std::mt19937& random) {
  std::vector<Parameter> before;
  for (const Layout& layout : layouts()) {
    for (const int keep : {-1, 0, 1, 2, 9}) {
      before.push_back(make(layout, dtype, tensors_of(options), keep, random));
      Parameter& parameter = before.back();
      const int64_t neurons = layout.sizes[layout.dim];
      if (keep < 0 || parameter.view.count == neurons) continue;
      parameter.index.resize(neurons, -1);
    }
  }
  std::vector<Parameter> after = before;
  const int64_t launches = emulation::launches();
  CHECK(step(options, after) == NEQ_OK);
  CHECK(emulation::launches() - launches <= 16);
  for (size_t i = 0; i < before.size(); ++i) check_stepped(options, before[i], after[i]);
  // With the padding counted in: the same rows are stepped.
  std::vector<Parameter> padded = before;
  for (Parameter& parameter : padded) {
    if (parameter.view.count >= 0) {
      parameter.view.count = static_cast<int64_t>(parameter.index.size());
    }
  }
  CHECK(step(options, padded) == NEQ_OK);
  CHECK(bytes_of(padded) == bytes_of(after));
  if (dtype != NEQ_F32) return;
  CHECK(emulation::same_in_every_order([&] {
    std::vector<Parameter> again = before;
    CHECK(step(options, again) == NEQ_OK);
    return bytes_of(again);
  }));
}

// A neuron that is not there is skipped, wherever the list has it.
void check_padding() {
  std::mt19937 random(7);
  const neq_sgd options = {0.1, 0.9, 0, 0, 0, 0};
  for (const int32_t wrong : {-1, -5, 6, INT32_MAX, INT32_MIN}) {
    for (const int32_t dim : {0, 1}) {
      std::vector<Parameter> parameters = {
          make({{6, 6}, dim, {0, 1}, {0, 1}}, NEQ_F32, 3, 1, random)};
      parameters[0].index = {0, wrong, 4};
      parameters[0].view.count = 3;
      std::vector<Parameter> right = parameters;
      right[0].index = {0, 4};
      right[0].view.count = 2;
      CHECK(step(options, parameters) == NEQ_OK);
      CHECK(step(options, right) == NEQ_OK);
      CHECK(bytes_of(parameters) == bytes_of(right));
    }
  }
}

// Many small parameters share launches; mixed dtypes have their own.
void check_tables() {
  std::mt19937 random(9);
  const neq_adamw options = {0.1, 0.9, 0.99, 1e-8, 0.3, 1, 0, 0, 0};
  std::vector<Parameter> before;
  for (int i = 0; i < 100; ++i) {
    const neq_dtype dtype = i % 10 == 3 ? NEQ_F64 : NEQ_F32;
    before.push_back(make({{8, 4}, 0, {0, 1}, {0, 1}}, dtype, 4, i % 3 - 1, random));
  }
  std::vector<Parameter> after = before;
  const int64_t launches = emulation::launches();
  CHECK(step(options, after) == NEQ_OK);
  CHECK(emulation::launches() - launches <= 8);
  for (size_t i = 0; i < before.size(); ++i) check_stepped(options, before[i], after[i]);
}

void check_refusals() {
  std::mt19937 random(5);
  Parameter good = make({{6, 4}, 0, {0, 1}, {0, 1}}, NEQ_F32, 4, 1, random);
  const neq_sgd sgd = {0.1, 0.9, 0, 0, 0, 0};
  CHECK_REFUSED(neq_row_sgd_cuda(nullptr, &good.view, 1, nullptr), "options: expected some");
  CHECK_REFUSED(neq_row_sgd_cuda(&sgd, nullptr, 1, nullptr), "parameters: expected 0 to");
  CHECK(neq_row_sgd_cuda(&sgd, nullptr, 0, nullptr) == NEQ_OK);
  good.view.step = 0;
  const neq_adamw adamw = {0.1, 0.9, 0.99, 1e-8, 0, 1, 0, 0, 0};
  CHECK_REFUSED(neq_row_adamw_cuda(&adamw, &good.view, 1, nullptr), "step: expected 1 or more");
  good.view.count = 9;
  CHECK_REFUSED(neq_row_sgd_cuda(&sgd, &good.view, 1, nullptr), "count: expected -1 or up to");
  good.view.count = 6;
  emulation::fail_next_launch(cudaErrorInvalidDevice);
  CHECK_REFUSED(neq_row_sgd_cuda(&sgd, &good.view, 1, nullptr), "invalid device ordinal");
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
    for (const neq_sgd& options : sgd_options()) check_options(options, dtype, random);
    for (const neq_adamw& options : adamw_options()) check_options(options, dtype, random);
  }
  check_padding();
  check_tables();
  check_refusals();
  std::puts("cuda_row_step: ok");
}
