// neq_pack_channels_cpu on right and wrong arguments. Right ones must succeed and give what a loop
// gives, wrong ones must be refused and write nothing.
#include "input.h"

namespace {

struct Call {
  neq_tensor dy{};
  neq_tensor packed{};
  int32_t dim = 0;
  std::vector<int32_t> index;
  bool bias = false;
};

Call random_call(Input& input) {
  Call call;
  call.dy.dtype = static_cast<int32_t>(input.between(NEQ_F32, NEQ_BF16));
  call.dy.ndim = static_cast<int32_t>(input.between(1, 4));
  call.dim = static_cast<int32_t>(input.between(0, call.dy.ndim - 1));
  for (int32_t d = 0; d < call.dy.ndim; ++d) call.dy.size[d] = input.between(0, 9);
  call.dy.size[call.dim] = input.between(0, input.once_in(3) ? 150 : 40);
  const int64_t every = input.between(1, 12);
  for (int32_t c = 0; c < call.dy.size[call.dim]; ++c) {
    if (input.bits(1) % every == 0) call.index.push_back(c);
  }
  if (input.once_in(3)) call.index.insert(call.index.end(), input.between(0, 9), -1);
  call.packed = call.dy;
  call.packed.size[call.dim] = static_cast<int64_t>(call.index.size());
  lay_out(input, &call.dy, false);
  lay_out(input, &call.packed, true);
  call.bias = input.once_in(2);
  return call;
}

void break_something(Input& input, Call* call) {
  const int64_t place = input.between(0, 200);
  switch (input.bits(1) % 5) {
    case 0:
      return damage(input, &call->dy);
    case 1:
      return damage(input, &call->packed);
    case 2:
      call->dim = static_cast<int32_t>(input.wild());
      return;
    case 3:
      if (!call->index.empty()) {
        call->index[place % call->index.size()] = static_cast<int32_t>(input.wild());
      }
      return;
    default:  // longer than the channels, or than packed says
      call->packed.size[call->dim] += place;
      call->index.resize(call->index.size() + place, static_cast<int32_t>(place));
  }
}

Right judge_call(const Call& call) {
  Right right = both(judge(call.dy, false), judge(call.packed, true));
  if (right == Right::kNo) return right;
  if (call.dim < 0 || call.dim >= call.dy.ndim) return Right::kNo;
  if (call.packed.dtype != call.dy.dtype || call.packed.ndim != call.dy.ndim) return Right::kNo;
  for (int32_t d = 0; d < call.dy.ndim; ++d) {
    if (d != call.dim && call.packed.size[d] != call.dy.size[d]) return Right::kNo;
  }
  if (call.dy.size[call.dim] > INT32_MAX) return Right::kNo;
  if (call.packed.size[call.dim] > INT32_MAX) return Right::kNo;
  return both(right, judge_index(call.index, call.packed.size[call.dim], call.dy.size[call.dim]));
}

// The packed elements bit by bit; sums of fp32 and fp64 that are finite, up to rounding.
void compare(const Call& call, const uint8_t* bias) {
  const int64_t element = bytes_of(call.dy.dtype);
  const int64_t count = static_cast<int64_t>(extent_of(call.packed).count);
  const auto* from = static_cast<const uint8_t*>(call.dy.data);
  const auto* to = static_cast<const uint8_t*>(call.packed.data);
  const auto width = static_cast<size_t>(call.packed.size[call.dim]);
  std::vector<double> sums(width, 0.0), sizes(width, 0.0);
  for (int64_t k = 0; k < count; ++k) {
    int64_t source = 0, target = 0, channel = 0, rest = k;
    for (int32_t d = call.packed.ndim - 1; d >= 0; --d) {
      const int64_t here = rest % call.packed.size[d];
      rest /= call.packed.size[d];
      target += here * call.packed.stride[d];
      if (d == call.dim) channel = here;
      source += (d == call.dim ? std::max(call.index[here], 0) : here) * call.dy.stride[d];
    }
    static const uint8_t zero[8] = {};
    const uint8_t* expected = call.index[channel] < 0 ? zero : from + source * element;
    CHECK(std::memcmp(to + target * element, expected, element) == 0);
    const double value = value_at(expected, call.dy.dtype);
    sums[channel] += value;
    sizes[channel] += std::abs(value);
  }
  for (size_t i = 0; bias && element > 2 && i < width; ++i) {
    const double eps = element == 8 ? 1e-13 : 1e-5;
    if (!(sizes[i] < 1e30)) continue;
    CHECK(std::abs(value_at(bias + i * element, call.dy.dtype) - sums[i]) <= eps * sizes[i]);
  }
}

neq_status run(const Call& call, void* bias, neq_scratch scratch, const neq_parallel* parallel) {
  return neq_pack_channels_cpu(&call.dy, call.dim, call.index.data(), &call.packed, bias, scratch,
                               parallel);
}

void must_be_refused(Input& input, Call call, Right right) {
  double room[8];
  int64_t target = 0x5a5a5a5a5a5a5a5a;
  const int64_t before = target;
  if (call.dy.data != nullptr) call.dy.data = room;
  if (call.packed.data != nullptr) call.packed.data = &target;
  const neq_scratch scratch = {input.once_in(2) ? room : nullptr, input.once_in(2) ? 64 : 0};
  if (right == Right::kNo) {
    CHECK(run(call, call.bias ? room : nullptr, scratch, nullptr) != NEQ_OK);
    CHECK(error_names({"dy:", "packed:", "dim:", "index:", "scratch:"}));
  } else {
    neq_pack_channels_cpu_scratch(&call.dy, call.dim, &call.packed, nullptr);
  }
  CHECK(target == before);
}

}  // namespace

void fuzz(Input& input) {
  force_isa(input);
  Call call = random_call(input);
  int present = 0;
  call.dy.data = call.packed.data = &present;
  if (input.once_in(2)) break_something(input, &call);
  Right right = judge_call(call);
  const bool missing =
      right == Right::kYes && ((!call.dy.data && extent_of(call.dy).count > 0) ||
                               (!call.packed.data && extent_of(call.packed).count > 0));
  if (missing) right = Right::kNo;
  if (right != Right::kYes) return must_be_refused(input, call, right);
  if (!small(call.dy) || !small(call.packed)) return;

  Memory source(memory_bytes(call.dy));
  Memory target(memory_bytes(call.packed));
  Memory bias(call.bias ? call.packed.size[call.dim] * bytes_of(call.dy.dtype) : 0);
  source.randomize(input.bits(4));
  call.dy.data = source.data();
  call.packed.data = target.data();
  const int64_t bytes =
      neq_pack_channels_cpu_scratch(&call.dy, call.dim, &call.packed, bias.data());
  CHECK(bytes >= 0);
  if (input.once_in(8) && bytes > 0) {
    Memory little(bytes - 1);
    CHECK(run(call, bias.data(), {little.data(), bytes - 1}, nullptr) == NEQ_INVALID_ARGUMENT);
  }
  Memory scratch(bytes);
  CHECK(run(call, bias.data(), {scratch.data(), bytes}, any_threads(input)) == NEQ_OK);
  compare(call, bias.data());
}
