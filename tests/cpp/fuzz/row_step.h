// What the fuzzers of row_sgd and row_adamw share: parameters that may be wrong in one place, a
// judge of them, and a loop that steps one element after the other.
//
// Besides the numbers, every byte that is not of an active row, gaps and the gradient included,
// must stay as it was.
#pragma once

#include <memory>

#include "input.h"

struct Parameter {
  neq_row_parameter view{};
  std::vector<int32_t> index;
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<std::vector<uint8_t>> before;
};

struct Call {
  std::vector<Parameter> parameters;
  std::vector<neq_row_parameter> views;
  int64_t count = 0;
  int tensors = 0;
  bool any_bits = false;

  const neq_row_parameter* data() const { return views.empty() ? nullptr : views.data(); }
};

inline Parameter random_parameter(Input& input, int tensors) {
  Parameter parameter;
  neq_row_parameter& view = parameter.view;
  neq_tensor first{};
  first.dtype = static_cast<int32_t>(input.between(NEQ_F32, NEQ_BF16));
  first.ndim = static_cast<int32_t>(input.between(1, 4));
  view.dim = static_cast<int32_t>(input.between(0, first.ndim - 1));
  for (int32_t d = 0; d < first.ndim; ++d) first.size[d] = input.between(0, 9);
  first.size[view.dim] = input.between(0, input.once_in(3) ? 150 : 20);
  lay_out(input, &first, true);
  const bool alike = !input.once_in(3);
  static double present;
  for (int t = 0; t < tensors; ++t) {
    view.tensor[t] = first;
    if (!alike) lay_out(input, &view.tensor[t], t != 1);
    view.tensor[t].data = &present;
  }
  const int64_t every = input.between(1, 5);
  for (int32_t c = 0; c < first.size[view.dim]; ++c) {
    if (input.bits(1) % every == 0) parameter.index.push_back(c);
  }
  view.count = input.once_in(4) ? -1 : static_cast<int64_t>(parameter.index.size());
  view.step = static_cast<double>(input.pick<int64_t>({1, 2, 9, 100, 1 << 24}));
  return parameter;
}

inline Call random_call(Input& input, int tensors) {
  Call call;
  call.tensors = tensors;
  call.count = input.between(0, 3);
  for (int64_t i = 0; i < call.count; ++i) {
    call.parameters.push_back(random_parameter(input, tensors));
  }
  call.any_bits = input.once_in(8);
  return call;
}

inline void break_something(Input& input, Call* call) {
  const int64_t kind = input.between(0, 6);
  const int64_t place = input.between(0, 200);
  if (kind == 0 || call->parameters.empty()) {
    call->count = std::min<int64_t>(input.wild(), call->count);  // no more than there are
    return;
  }
  Parameter& parameter = call->parameters[place % call->parameters.size()];
  neq_row_parameter& view = parameter.view;
  switch (kind) {
    case 1:
      view.dim = static_cast<int32_t>(input.wild());
      return;
    case 2:
      view.count = input.wild();
      return;
    case 3:
      if (!parameter.index.empty()) {
        parameter.index[place % parameter.index.size()] = static_cast<int32_t>(input.wild());
      }
      return;
    case 4:
      view.step = input.pick<double>({0, -1, NAN, -INFINITY, 0.5});
      return;
    case 5: {  // of all of them, so that they agree
      const int64_t d = place % view.tensor[0].ndim;
      const int64_t size = input.wild();
      const bool expanded = input.once_in(2);
      for (int t = 0; t < call->tensors; ++t) stretch(&view.tensor[t], d, size, expanded);
      return;
    }
    default:
      return damage(input, &view.tensor[place % call->tensors]);
  }
}

inline Right judge_rows(const Parameter& parameter) {
  const neq_row_parameter& view = parameter.view;
  if (view.count == -1) return Right::kYes;
  if (view.dim < 0 || view.dim >= view.tensor[0].ndim) return Right::kNo;
  const int64_t neurons = view.tensor[0].size[view.dim];
  if (view.count < -1 || view.count > std::min<int64_t>(neurons, INT32_MAX)) return Right::kNo;
  int64_t last = -1;
  const auto listed = static_cast<int64_t>(parameter.index.size());
  for (int64_t i = 0; i < std::min(view.count, listed); ++i) {
    if (parameter.index[i] <= last || parameter.index[i] >= neurons) return Right::kNo;
    last = parameter.index[i];
  }
  return view.count > listed ? Right::kMaybe : Right::kYes;
}

inline Right judge_parameter(const Parameter& parameter, int tensors, bool steps) {
  const neq_row_parameter& view = parameter.view;
  const neq_tensor& first = view.tensor[0];
  Right right = Right::kYes;
  for (int t = 0; t < tensors; ++t) {
    const neq_tensor& tensor = view.tensor[t];
    right = both(right, judge(tensor, t != 1));
    if (right == Right::kNo) return right;
    if (tensor.dtype != first.dtype || tensor.ndim != first.ndim) return Right::kNo;
    if (!std::equal(first.size, first.size + first.ndim, tensor.size)) return Right::kNo;
    if (!tensor.data && extent_of(tensor).count > 0) return Right::kNo;
  }
  if (steps && !(view.step >= 1)) return Right::kNo;
  return both(right, judge_rows(parameter));
}

inline Right judge_call(const Call& call, bool steps) {
  if (call.count < 0) return Right::kNo;
  Right right = Right::kYes;
  for (int64_t i = 0; i < call.count; ++i) {
    right = both(right, judge_parameter(call.parameters[i], call.tensors, steps));
  }
  return right;
}

inline bool small(const Call& call) {
  for (int64_t i = 0; i < call.count; ++i) {
    for (int t = 0; t < call.tensors; ++t) {
      if (!small(call.parameters[i].view.tensor[t])) return false;
    }
  }
  return true;
}

// Views of the parameters as they are; without memory of their own nothing may be read or written.
inline void make_views(Call* call) {
  call->views.clear();
  for (Parameter& parameter : call->parameters) {
    parameter.view.index = parameter.index.empty() ? nullptr : parameter.index.data();
    call->views.push_back(parameter.view);
  }
}

// Memory for all tensors; what is an average of squares is not negative.
inline void allocate(Input& input, Call* call) {
  for (int64_t i = 0; i < call->count; ++i) {
    Parameter& parameter = call->parameters[i];
    for (int t = 0; t < call->tensors; ++t) {
      neq_tensor& tensor = parameter.view.tensor[t];
      auto memory = std::make_unique<Memory>(memory_bytes(tensor));
      if (call->any_bits) {
        memory->randomize(input.bits(4));
      } else {
        fill_with_quarters(memory.get(), tensor.dtype, input.bits(4), t >= 3);
      }
      tensor.data = memory->data();
      parameter.before.push_back(memory->copy());
      parameter.memory.push_back(std::move(memory));
    }
  }
  make_views(call);
}

inline void check_untouched(const Call& call) {
  for (const Parameter& parameter : call.parameters) {
    for (size_t t = 0; t < parameter.memory.size(); ++t) {
      CHECK(parameter.memory[t]->equals(parameter.before[t]));
    }
  }
}

// step(parameter, x, scale): x[t] as it must become, scale[t] how large the numbers it is made of
// are.
template <class Step>
void compare_parameter(const Call& call, Parameter* parameter, Step step) {
  const neq_row_parameter& view = parameter->view;
  const neq_tensor& first = view.tensor[0];
  const int64_t element = bytes_of(first.dtype);
  const double eps = first.dtype == NEQ_F64   ? 1e-13
                     : first.dtype == NEQ_F32 ? 1e-5
                     : first.dtype == NEQ_F16 ? 2e-3
                                              : 1e-2;
  const auto count = static_cast<int64_t>(extent_of(first).count);
  for (int64_t k = 0; k < count; ++k) {
    int64_t at[NEQ_ROW_TENSORS] = {}, neuron = 0, rest = k;
    for (int32_t d = first.ndim - 1; d >= 0; --d) {
      const int64_t here = rest % first.size[d];
      rest /= first.size[d];
      if (d == view.dim) neuron = here;
      for (int t = 0; t < call.tensors; ++t) at[t] += here * view.tensor[t].stride[d] * element;
    }
    const auto& index = parameter->index;
    if (view.count >= 0 && !std::binary_search(index.begin(), index.begin() + view.count,
                                               static_cast<int32_t>(neuron))) {
      continue;
    }
    double x[NEQ_ROW_TENSORS] = {}, scale[NEQ_ROW_TENSORS] = {};
    for (int t = 0; t < call.tensors; ++t) {
      x[t] = value_at(parameter->before[t].data() + at[t], first.dtype);
    }
    step(view, x, scale);
    for (int t = 0; t < call.tensors; ++t) {
      if (t == 1) continue;
      const uint8_t* now = parameter->memory[t]->data() + at[t];
      const double difference = std::abs(value_at(now, first.dtype) - x[t]);
      CHECK(call.any_bits || difference <= eps * scale[t] + (element == 2 ? 1e-6 : 0));
      std::memcpy(&parameter->before[t][at[t]], now, element);
    }
  }
}

// run(parameters, count, scratch, parallel) is the function itself, scratch_of(parameters, count)
// that for its scratch.
template <class Run, class ScratchOf, class Step>
void fuzz_rows(Input& input, Call* call, Right options, bool steps, Run run, ScratchOf scratch_of,
               Step step) {
  if (input.once_in(2)) break_something(input, call);
  const Right right = both(options, judge_call(*call, steps));
  make_views(call);
  const int64_t bytes = scratch_of(call->data(), call->count);
  if (right == Right::kMaybe || !(right == Right::kNo || small(*call))) return;
  if (right == Right::kNo) {
    if (judge_call(*call, false) == Right::kYes && small(*call)) allocate(input, call);
    Memory scratch(std::clamp<int64_t>(bytes, 64, kMostBytes));
    CHECK(run(call->data(), call->count, {scratch.data(), scratch.bytes()}, nullptr) != NEQ_OK);
    CHECK(error_names({"options:", "parameters:", "parameter "}));
    return check_untouched(*call);
  }
  CHECK(bytes >= 0);
  allocate(input, call);
  if (bytes > 0) {
    Memory little(bytes - 1);
    CHECK_REFUSED(run(call->data(), call->count, {little.data(), bytes - 1}, nullptr), "scratch:");
    check_untouched(*call);
  }
  Memory scratch(bytes);
  CHECK(run(call->data(), call->count, {scratch.data(), bytes}, any_threads(input)) == NEQ_OK);
  for (int64_t i = 0; i < call->count; ++i) compare_parameter(*call, &call->parameters[i], step);
  check_untouched(*call);
}
