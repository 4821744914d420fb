// neq_compact_cpu on right and wrong arguments: any bytes as masks, any bits as velocities.
#include <memory>

#include "input.h"

namespace {

struct Call {
  std::vector<neq_choice> layers;
  int64_t count = 0;
  int32_t kind = NEQ_MASK;
  double epsilon = 0;
};

int64_t element_of(int32_t kind) { return kind == NEQ_MASK ? 1 : kind == NEQ_VELOCITY_F32 ? 4 : 8; }

Call random_call(Input& input) {
  Call call;
  call.count = input.between(0, 5);
  call.kind = static_cast<int32_t>(input.between(NEQ_MASK, NEQ_VELOCITY_F64));
  call.epsilon = input.pick<double>({0, 1e-3, 0.25, 1, 3.75, 1e30, 1e300, INFINITY});
  for (int64_t l = 0; l < call.count; ++l) {
    call.layers.push_back({&call, input.between(0, input.once_in(3) ? 200 : 20)});
  }
  return call;
}

void break_something(Input& input, Call* call) {
  const int64_t place = input.between(0, 4);
  neq_choice* layer = call->layers.empty() ? nullptr : &call->layers[place % call->layers.size()];
  switch (input.bits(1) % 5) {
    case 0:
      call->count = std::min<int64_t>(input.wild(), call->count);
      return;
    case 1:
      call->kind = static_cast<int32_t>(input.wild());
      return;
    case 2:
      call->epsilon = input.pick<double>({-1, -0.0, -1e-300, -INFINITY, NAN});
      return;
    case 3:
      if (layer) layer->size = input.wild();
      return;
    default:
      if (layer) layer->data = nullptr;
  }
}

Right judge_call(const Call& call) {
  if (call.count < 0 || call.kind < NEQ_MASK || call.kind > NEQ_VELOCITY_F64) return Right::kNo;
  if (call.kind != NEQ_MASK && !(call.epsilon >= 0)) return Right::kNo;
  for (int64_t l = 0; l < call.count; ++l) {
    const neq_choice& layer = call.layers[l];
    if (layer.size < 0 || layer.size > INT32_MAX) return Right::kNo;
    if (layer.size > 0 && !layer.data) return Right::kNo;
  }
  return Right::kYes;
}

bool active(const Call& call, const uint8_t* at) {
  if (call.kind == NEQ_MASK) return *at != 0;
  if (call.kind == NEQ_VELOCITY_F64) return std::abs(value_at(at, NEQ_F64)) >= call.epsilon;
  const double limit = call.epsilon > 3.5e38 ? INFINITY : static_cast<float>(call.epsilon);
  return std::abs(value_at(at, NEQ_F32)) >= limit;
}

void compare(const Call& call, const int32_t* lists) {
  const int32_t* list = lists + call.count;
  for (int64_t l = 0; l < call.count; ++l) {
    const neq_choice& layer = call.layers[l];
    const auto* data = static_cast<const uint8_t*>(layer.data);
    int64_t found = 0;
    for (int64_t c = 0; c < layer.size; ++c) {
      if (active(call, data + c * element_of(call.kind))) CHECK(list[found++] == c);
    }
    CHECK(lists[l] == found);
    for (; found < layer.size; ++found) CHECK(list[found] == -1);
    list += layer.size;
  }
}

neq_status run(const Call& call, int32_t* lists) {
  const neq_choice* layers = call.layers.empty() ? nullptr : call.layers.data();
  return neq_compact_cpu(layers, call.count, call.kind, call.epsilon, lists);
}

}  // namespace

void fuzz(Input& input) {
  Call call = random_call(input);
  if (input.once_in(2)) break_something(input, &call);
  if (judge_call(call) == Right::kNo) {
    int32_t lists[2] = {7, 7};
    CHECK(run(call, lists) != NEQ_OK);
    CHECK(error_names({"layers:", "kind:", "epsilon:"}));
    CHECK(lists[0] == 7 && lists[1] == 7);
    return;
  }
  int64_t length = call.count;
  for (int64_t l = 0; l < call.count; ++l) length += call.layers[l].size;
  if (length > 0) CHECK_REFUSED(run(call, nullptr), "lists:");
  if (length * 8 > kMostBytes) return;

  std::vector<std::unique_ptr<Memory>> memories;
  for (int64_t l = 0; l < call.count; ++l) {
    neq_choice& layer = call.layers[l];
    memories.push_back(std::make_unique<Memory>(layer.size * element_of(call.kind)));
    Memory& memory = *memories.back();
    if (call.kind == NEQ_MASK || input.once_in(3)) {
      memory.randomize(input.bits(4));
    } else {
      fill_with_quarters(&memory, call.kind == NEQ_VELOCITY_F32 ? NEQ_F32 : NEQ_F64, input.bits(4),
                         false);
    }
    const uint8_t often = static_cast<uint8_t>(input.bits(1));
    for (int64_t i = 0; call.kind == NEQ_MASK && i < layer.size; ++i) {
      if (memory.data()[i] > often) memory.data()[i] = 0;
    }
    layer.data = memory.data();
  }
  Memory lists(length * static_cast<int64_t>(sizeof(int32_t)));
  CHECK(run(call, reinterpret_cast<int32_t*>(lists.data())) == NEQ_OK);
  compare(call, reinterpret_cast<const int32_t*>(lists.data()));
}
