// neq_row_sgd_cpu and neq_row_adamw_cpu against a loop in double, for every layout, dtype, set of
// options and instruction set, in buffers of exactly the right size.
#include "row_step.h"

#include <cinttypes>
#include <limits>

namespace {

using namespace row_step;

int64_t scratch_of(const neq_sgd& options, const neq_row_parameter* parameters, int64_t n) {
  return neq_row_sgd_cpu_scratch(&options, parameters, n);
}
int64_t scratch_of(const neq_adamw& options, const neq_row_parameter* parameters, int64_t n) {
  return neq_row_adamw_cpu_scratch(&options, parameters, n);
}
neq_status call(const neq_sgd& options, const neq_row_parameter* parameters, int64_t n,
                neq_scratch scratch, const neq_parallel* parallel) {
  return neq_row_sgd_cpu(&options, parameters, n, scratch, parallel);
}
neq_status call(const neq_adamw& options, const neq_row_parameter* parameters, int64_t n,
                neq_scratch scratch, const neq_parallel* parallel) {
  return neq_row_adamw_cpu(&options, parameters, n, scratch, parallel);
}

template <class Options>
neq_status step(const Options& options, std::vector<Parameter>& parameters,
                const neq_parallel* parallel) {
  std::vector<neq_row_parameter> views;
  for (Parameter& parameter : parameters) {
    parameter.connect();
    views.push_back(parameter.view);
  }
  const auto n = static_cast<int64_t>(views.size());
  const int64_t bytes = scratch_of(options, views.data(), n);
  if (bytes < 0) return NEQ_INVALID_ARGUMENT;
  std::vector<uint8_t> scratch(bytes);
  return call(options, views.data(), n, {scratch.data(), bytes}, parallel);
}

bool same(const std::vector<Parameter>& a, const std::vector<Parameter>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    for (int t = 0; t < a[i].tensors; ++t) {
      if (a[i].memory[t] != b[i].memory[t]) return false;
    }
  }
  return true;
}

// All layouts in one call: their pieces are shared out together.
template <class Options>
void check_options(const Options& options, neq_dtype dtype, std::mt19937& random) {
  std::vector<Parameter> before;
  for (const Layout& layout : layouts()) {
    for (const int keep : {-1, 0, 1, 2, 9}) {
      before.push_back(make(layout, dtype, tensors_of(options), keep, random));
    }
  }
  neq_parallel const ways[] = {backwards(), four_threads()};
  std::vector<Parameter> first;
  for (const neq_isa isa : {NEQ_ISA_SCALAR, NEQ_ISA_AVX2, NEQ_ISA_AVX512}) {
    if (!neq_cpu_isa_supported(isa)) continue;
    CHECK(neq_cpu_set_isa(isa) == NEQ_OK);
    std::vector<Parameter> after = before;
    CHECK(step(options, after, nullptr) == NEQ_OK);
    if (first.empty()) {
      for (size_t i = 0; i < before.size(); ++i) check_stepped(options, before[i], after[i]);
      first = after;
    }
    CHECK(same(first, after));  // every instruction set, to the last bit
    for (const neq_parallel& parallel : ways) {
      after = before;
      CHECK(step(options, after, &parallel) == NEQ_OK);
      CHECK(same(first, after));
    }
  }
}

// NaN comes out where torch.maximum has it, and numbers come out where frozen ones are NaN.
void check_nan() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::mt19937 random(3);
  const neq_adamw options = {0.1, 0.9, 0.99, 1e-8, 0, 1, 1, 0, 0};
  for (const neq_isa isa : {NEQ_ISA_SCALAR, NEQ_ISA_AVX2, NEQ_ISA_AVX512}) {
    if (!neq_cpu_isa_supported(isa)) continue;
    CHECK(neq_cpu_set_isa(isa) == NEQ_OK);
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      std::vector<Parameter> parameters = {make({{4, 48}, 1, {0, 1}, {0, 1}}, dtype, 5, 2, random)};
      Parameter& parameter = parameters[0];
      parameter.index = {1, 2, 3, 20};
      parameter.view.count = 4;
      for (const int64_t frozen : {0, 4, 21}) store(parameter.element(1, frozen), dtype, nan);
      store(parameter.element(4, 1), dtype, nan);  // the maximum so far
      store(parameter.element(3, 2), dtype, nan);  // what may become it
      CHECK(step(options, parameters, nullptr) == NEQ_OK);
      for (const int64_t i : {1, 2}) {
        CHECK(std::isnan(load(parameter.element(4, i), dtype)));
        CHECK(std::isnan(load(parameter.element(0, i), dtype)));
      }
      for (const int64_t i : {0, 3, 4, 20, 21}) {
        CHECK(!std::isnan(load(parameter.element(0, i), dtype)));
      }
    }
  }
}

neq_status try_sgd(neq_row_parameter view, neq_sgd options = {0.1, 0.9, 0, 0, 0, 0}) {
  std::vector<uint64_t> scratch(1000);
  return neq_row_sgd_cpu(&options, &view, 1, {scratch.data(), 8000}, nullptr);
}

void check_refusals() {
  std::mt19937 random(5);
  Parameter good = make({{6, 4}, 0, {0, 1}, {0, 1}}, NEQ_F32, 4, 1, random);
  CHECK(try_sgd(good.view) == NEQ_OK);
  const auto refused = [&](auto&& change, const char* text) {
    neq_row_parameter view = good.view;
    change(view);
    CHECK_REFUSED(try_sgd(view), text);
  };
  refused([](auto& v) { v.tensor[0].dtype = 9; }, "parameter 0, parameter: expected dtype f32");
  refused([](auto& v) { v.tensor[1].ndim = 0; },
          "parameter 0, gradient: expected 1 to 8 dimensions");
  refused([](auto& v) { v.tensor[2].size[1] = -4; }, "parameter 0, state 1: expected sizes");
  refused([](auto& v) { v.tensor[1].size[1] = 3; }, "gradient: expected the parameter's dtype");
  refused([](auto& v) { v.tensor[1].dtype = NEQ_F64; }, "expected the parameter's dtype 0");
  refused([](auto& v) { v.tensor[2].stride[0] = 0; }, "state 1: expected memory of its own");
  refused([](auto& v) { v.tensor[0].stride[0] = INT64_MAX / 2; }, "offsets that fit 64 bits");
  refused([](auto& v) { v.tensor[2].data = nullptr; }, "state 1: expected data");
  refused([](auto& v) { v.dim = 2; }, "dim: expected one of its 2 dimensions, got 2");
  refused([](auto& v) { v.dim = -1; }, "dim: expected one of its 2 dimensions");
  refused([](auto& v) { v.count = 7; }, "count: expected -1 or up to its 6 neurons, got 7");
  refused([](auto& v) { v.count = -2; }, "count: expected -1 or up to");
  refused([](auto& v) { v.index = nullptr; }, "index: expected 6 neurons, got a null pointer");
  for (const std::vector<int32_t>& wrong : {std::vector<int32_t>{1, 0}, {2, 2}, {-1, 3}, {0, 6}}) {
    refused(
        [&](auto& v) {
          v.index = wrong.data();
          v.count = 2;
        },
        "index: expected rising neurons in [0, 6)");
  }
  // A gradient may be expanded: it is only read.
  neq_row_parameter expanded = good.view;
  expanded.tensor[1].stride[0] = 0;
  CHECK(try_sgd(expanded) == NEQ_OK);

  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_REFUSED(try_sgd(good.view, {infinity, 0, 0, 0, 0, 0}), "expected finite numbers, got lr");
  std::vector<uint64_t> scratch(1000);
  const neq_sgd sgd = {0.1, 0, 0, 0, 0, 0};
  CHECK_REFUSED(neq_row_sgd_cpu(nullptr, &good.view, 1, {scratch.data(), 8000}, nullptr),
                "options: expected some");
  CHECK_REFUSED(neq_row_sgd_cpu(&sgd, nullptr, 1, {scratch.data(), 8000}, nullptr), "parameters");
  CHECK_REFUSED(neq_row_sgd_cpu(&sgd, &good.view, -1, {scratch.data(), 8000}, nullptr),
                "parameters: expected 0 to");
  CHECK_REFUSED(neq_row_sgd_cpu(&sgd, &good.view, 1, {scratch.data(), 8}, nullptr), "scratch");
  CHECK(neq_row_sgd_cpu(&sgd, nullptr, 0, {nullptr, 0}, nullptr) == NEQ_OK);
  // As many neurons as there can be, of nothing.
  const int32_t first = 0;
  const neq_tensor nothing = {nullptr, NEQ_F32, 2, {0, INT64_MAX}, {1, 0}};
  const neq_row_parameter vast = {{nothing, nothing}, 1, &first, 1, 0};
  CHECK(neq_row_sgd_cpu(&sgd, &vast, 1, {scratch.data(), 8000}, nullptr) == NEQ_OK);
  neq_adamw adamw = {0.1, 0.9, 1, 1e-8, 0, 1, 0, 0, 0};
  CHECK(neq_row_adamw_cpu_scratch(&adamw, &good.view, 1) == -1);
  CHECK(std::strstr(neq_last_error(), "expected betas in [0, 1), got 0.9 and 1"));
  adamw.beta2 = 0.99;
  good.view.step = 0;
  CHECK(neq_row_adamw_cpu_scratch(&adamw, &good.view, 1) == -1);
  CHECK(std::strstr(neq_last_error(), "step: expected 1 or more, got 0"));
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
    for (const neq_sgd& options : sgd_options()) check_options(options, dtype, random);
    for (const neq_adamw& options : adamw_options()) check_options(options, dtype, random);
  }
  check_nan();
  check_refusals();
  std::puts("row_step: ok");
}
