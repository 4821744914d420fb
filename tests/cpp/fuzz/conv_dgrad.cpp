// neq_conv_dgrad_cpu on right and wrong arguments: x is dx, dw the weight.
#include "convolution.h"

namespace {

neq_status dgrad(const Call& call, neq_scratch scratch, const neq_parallel* parallel) {
  return neq_conv_dgrad_cpu(&call.dy, &call.dw, call.index.data(), call.width,
                            call.no_window ? nullptr : &call.window, &call.x, scratch, parallel);
}

int64_t scratch_of(const Call& call) {
  return neq_conv_dgrad_cpu_scratch(&call.dy, &call.dw, call.width,
                                    call.no_window ? nullptr : &call.window, &call.x);
}

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

// At most 64 phases, and tiles that are not too large.
Right judge_limits(const Call& call) {
  Wide phases = 1;
  Wide weights = Wide{call.width} * call.x.size[1];
  Wide largest = 1;
  for (int32_t d = 0; d < call.dy.ndim - 2; ++d) {
    phases *= std::min(call.window.stride[d], call.dw.size[2 + d]);
    weights = std::min(weights * call.dw.size[2 + d], Wide{1} << 60);
    largest = std::max<Wide>({largest, call.dy.size[2 + d], call.x.size[2 + d]});
  }
  const bool large = phases > 64 || weights > (Wide{1} << 24) || largest > (Wide{1} << 20) ||
                     call.width > (1 << 20) || call.dy.size[0] > (1 << 20);
  return large ? Right::kMaybe : Right::kYes;
}

const Operator kOperator = {nullptr,      nullptr, random_outputs, set_rows, judge_channels,
                            judge_limits, nullptr, nullptr,        true};

// The sum for one element of dx, over the active channels.
double expected(const Call& call, int64_t n, int64_t input, const int64_t* at) {
  const int32_t dims = call.dy.ndim - 2;
  const int64_t wide = dims == 2 ? call.dw.size[3] : 1;
  double sum = 0;
  for (int64_t k = 0; k < call.dw.size[2] * wide; ++k) {
    const int64_t tap[2] = {k / wide, k % wide};
    int64_t out[2] = {0, 0};
    bool inside = true;
    for (int32_t d = 0; inside && d < dims; ++d) {
      const int64_t from = at[d] + call.window.padding[d] - tap[d] * call.window.dilation[d];
      out[d] = from / call.window.stride[d];
      inside = from >= 0 && from % call.window.stride[d] == 0 && out[d] < call.dy.size[2 + d];
    }
    if (!inside) continue;
    for (int64_t i = 0; i < call.width && call.index[i] >= 0; ++i) {
      sum +=
          value_of(call.dw, call.index[i], input, tap) * value_of(call.dy, n, call.index[i], out);
    }
  }
  return sum;
}

// Whether an active weight of this channel of dx is not a number.
bool spoiled_weight(const Call& call, int64_t input) {
  const int64_t wide = call.dw.ndim == 4 ? call.dw.size[3] : 1;
  for (int64_t i = 0; i < call.width && call.index[i] >= 0; ++i) {
    for (int64_t k = 0; k < call.dw.size[2] * wide; ++k) {
      const int64_t tap[2] = {k / wide, k % wide};
      if (std::isnan(value_of(call.dw, call.index[i], input, tap))) return true;
    }
  }
  return false;
}

void compare_sums(const Call& call) {
  const int32_t dtype = call.dy.dtype;
  const double eps = dtype == NEQ_F16 ? 0x1p-11 : dtype == NEQ_BF16 ? 0x1p-8 : 0;
  const int64_t wide = call.x.ndim == 4 ? call.x.size[3] : 1;
  for (int64_t c = 0; c < call.x.size[1]; ++c) {
    if (spoiled_weight(call, c)) continue;
    for (int64_t n = 0; n < call.x.size[0]; ++n) {
      for (int64_t k = 0; k < call.x.size[2] * wide; ++k) {
        const int64_t at[2] = {k / wide, k % wide};
        const double right = expected(call, n, c, at);
        const double found = value_of(call.x, n, c, at);
        CHECK(std::isnan(right) ? std::isnan(found)
                                : std::abs(found - right) <= eps * std::abs(right));
      }
    }
  }
}

void must_refuse(const Call& given) {
  Call call = given;
  uint64_t target = 0x5a5a5a5a5a5a5a5a;
  const uint64_t before = target;
  if (call.x.data) call.x.data = &target;
  double room[8];
  CHECK(dgrad(call, {room, sizeof room}, nullptr) != NEQ_OK);
  CHECK(error_names({"dy:", "dx:", "index:", "width:", "window:", "weight:"}));
  CHECK(target == before);
}

// Calls that only take long are not made.
bool brief(const Call& call, int64_t bytes) {
  if (bytes < 0 || bytes > int64_t{1} << 22) return false;
  if (!small(call.dy) || !small(call.x) || !small(call.dw)) return false;
  return extent_of(call.x).count * extent_of(call.dw).count <= Wide{1} << 26;
}

}  // namespace

void fuzz(Input& input) {
  force_isa(input);
  Call call = random_call(kOperator, input);
  lay_out(input, &call.dw, false);
  input.once_in(2) ? lay_out_last(input, &call.x) : lay_out(input, &call.x, true);
  double present = 0;
  call.dy.data = call.x.data = call.dw.data = &present;
  if (input.once_in(2)) break_something(input, &call);
  const Right right = judge_call(kOperator, call);
  const int64_t bytes = scratch_of(call);
  if (judge_shapes(kOperator, call) == Right::kNo) CHECK(bytes == -1);
  if (right == Right::kNo) return must_refuse(call);
  CHECK(bytes >= 0 ||
        (right == Right::kMaybe && error_names({"dy:", "dx:", "window:", "weight:"})));
  if (call.width > static_cast<int64_t>(call.index.size())) return;
  if (!brief(call, bytes) || overlaps(call.x)) return;

  Memory dy(memory_bytes(call.dy));
  Memory weight(memory_bytes(call.dw));
  Memory dx(memory_bytes(call.x));
  const bool any_bits = input.once_in(8);
  fill_with_quarters(&dy, call.dy.dtype, input.bits(4), false);
  fill_with_quarters(&weight, call.dw.dtype, input.bits(4), false);
  if (any_bits) weight.randomize(input.bits(4));
  if (input.once_in(4)) spoil(input, input.once_in(2) ? &weight : &dy, call.dy.dtype);
  call.dy.data = dy.data();
  call.dw.data = weight.data();
  call.x.data = dx.data();
  const std::vector<uint8_t> before = dx.copy();
  if (input.once_in(8) && bytes > 0) {
    Memory little(bytes - 1);
    CHECK_REFUSED(dgrad(call, {little.data(), bytes - 1}, nullptr), "scratch:");
    CHECK(dx.equals(before));
  }
  // Off a cache line by as much as may be.
  const int64_t off = input.between(0, 7) * 8;
  Memory scratch(bytes + off);
  const neq_scratch room = {scratch.data() ? scratch.data() + off : nullptr, bytes};
  CHECK(dgrad(call, room, any_threads(input)) == NEQ_OK);
  if (!any_bits) compare_sums(call);
}
