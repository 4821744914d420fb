// What the fuzzers of conv_wgrad and depthwise_wgrad share, and conv_dgrad in part: convolutions
// that may be wrong in one place, a judge of them, and a loop nest. fp32 holds the short sums of
// products of quarters exactly, so right calls must give what the loop nest gives, rounded once.
#pragma once

#include "input.h"

struct Call {
  neq_tensor dy{};
  neq_tensor x{};
  neq_tensor dw{};
  neq_window window{};
  std::vector<int32_t> index;
  int64_t width = 0;
  bool bias = false;
  bool no_window = false;
};

// What sets one such function apart from the other.
struct Operator {
  decltype(&neq_conv_wgrad_cpu) run;
  decltype(&neq_conv_wgrad_cpu_scratch) scratch;
  // The channels of dy, for those of x; then, with the list known, dw's rows and what they hold.
  int64_t (*random_outputs)(Input& input, int64_t inputs);
  void (*set_rows)(Call* call);
  // Of channels, rows and width, whose tensors are right; of what else it may not support.
  Right (*judge_channels)(const Call& call);
  Right (*judge_limits)(const Call& call);
  // The channel of dy whose sums are in a row of dw, -1 for zeros, and the first of x.
  int64_t (*output_of)(const Call& call, int64_t row);
  int64_t (*input_of)(const Call& call, int64_t row);
  bool writes_x = false;  // whether x is what it computes, and dw is read
};

constexpr Wide kTall = Wide{1} << 20;  // what no real window reaches

inline Wide out_of(const Call& call, int32_t d) {
  const Wide reach = Wide{call.window.dilation[d]} * (Wide{call.dw.size[2 + d]} - 1);
  const Wide room = Wide{call.x.size[2 + d]} + Wide{call.window.padding[d]} * 2 - reach - 1;
  return room < 0 ? 0 : room / call.window.stride[d] + 1;
}

// The channels innermost, as in channels_last, with or without a gap.
inline void lay_out_last(Input& input, neq_tensor* tensor) {
  int64_t stride = std::max<int64_t>(tensor->size[1], 1) + (input.once_in(4) ? 3 : 0);
  tensor->stride[1] = 1;
  for (int32_t d = tensor->ndim - 1; d >= 0; d -= d == 2 ? 2 : 1) {
    tensor->stride[d] = stride;
    stride *= std::max<int64_t>(tensor->size[d], 1);
  }
}

inline Call random_call(const Operator& op, Input& input) {
  Call call;
  const auto dims = static_cast<int32_t>(input.between(1, 2));
  call.dy.dtype = static_cast<int32_t>(input.between(NEQ_F32, NEQ_BF16));
  call.dy.ndim = 2 + dims;
  call.x = call.dw = call.dy;
  call.x.size[0] = call.dy.size[0] = input.between(0, input.once_in(8) ? 20 : 3);
  call.x.size[1] = input.between(0, input.once_in(3) ? input.pick<int64_t>({40, 40, 90}) : 6);
  call.dy.size[1] = op.random_outputs(input, call.x.size[1]);
  for (int32_t d = 0; d < dims; ++d) {
    call.x.size[2 + d] = input.between(0, dims == 1 && input.once_in(4) ? 90 : 11);
    call.dw.size[2 + d] = input.between(1, input.once_in(4) ? 5 : 3);
    call.window.stride[d] = input.between(1, input.once_in(16) ? 9 : 3);
    call.window.padding[d] = input.between(0, input.once_in(16) ? 12 : 3);
    call.window.dilation[d] = input.between(1, input.once_in(16) ? 9 : 3);
    call.dy.size[2 + d] = static_cast<int64_t>(out_of(call, d));
  }
  const int64_t every = input.between(1, 6);
  for (int32_t c = 0; c < call.dy.size[1]; ++c) {
    if (input.bits(1) % every == 0) call.index.push_back(c);
  }
  const auto room = call.dy.size[1] - static_cast<int64_t>(call.index.size());
  if (input.once_in(3)) call.index.insert(call.index.end(), input.between(0, room), -1);
  call.width = static_cast<int64_t>(call.index.size());
  op.set_rows(&call);
  for (neq_tensor* tensor : {&call.dy, &call.x}) {
    input.once_in(2) ? lay_out_last(input, tensor) : lay_out(input, tensor, false);
  }
  lay_out(input, &call.dw, true);
  call.bias = input.once_in(2);
  return call;
}

inline void break_something(Input& input, Call* call) {
  const int64_t place = input.between(0, 200);
  neq_tensor* const tensors[] = {&call->dy, &call->x, &call->dw};
  int64_t* const numbers[] = {call->window.stride, call->window.padding, call->window.dilation};
  switch (input.bits(1) % 7) {
    case 0:
      call->width = input.wild();
      return;
    case 1:
      if (!call->index.empty()) {
        call->index[place % call->index.size()] = static_cast<int32_t>(input.wild());
      }
      return;
    case 2:
      call->no_window = true;
      return;
    case 3:
    case 4: {  // and dy's size with it, as often as not
      int64_t& number = numbers[place % 3][input.between(0, call->dy.ndim - 3)];
      number = input.wild() >> (input.once_in(2) ? input.between(0, 60) : 0);
      const bool wrong = input.once_in(2);
      for (int32_t d = 0; !wrong && d < call->dy.ndim - 2; ++d) {
        if (call->window.stride[d] == 0) continue;
        const Wide out = std::clamp<Wide>(out_of(*call, d), 0, INT64_MAX);
        stretch(&call->dy, 2 + d, static_cast<int64_t>(out), out > 99);
      }
      return;
    }
    case 5: {  // a kernel nobody has, or an image
      neq_tensor* tensor = tensors[1 + place % 2];
      const int64_t d = input.between(0, call->dy.ndim - 3);
      stretch(tensor, 2 + d, input.wild(), input.once_in(2));
      if (input.once_in(2)) stretch(tensor, call->dy.ndim - 1, input.wild(), true);
      for (int32_t i = 0; i < call->dy.ndim - 2; ++i) {
        const Wide out = std::clamp<Wide>(out_of(*call, i), 0, INT64_MAX);
        stretch(&call->dy, 2 + i, static_cast<int64_t>(out), out > 99);
      }
      return;
    }
    default:
      return damage(input, tensors[place % 3]);
  }
}

inline Right judge_window(const Call& call) {
  Right right = Right::kYes;
  Wide taps = 1;
  for (int32_t d = 0; d < call.dy.ndim - 2; ++d) {
    const Wide stride = call.window.stride[d];
    const Wide padding = call.window.padding[d];
    const Wide dilation = call.window.dilation[d];
    const Wide kernel = call.dw.size[2 + d];
    if (stride < 1 || padding < 0 || dilation < 1 || kernel < 1) return Right::kNo;
    if (call.dy.size[2 + d] != out_of(call, d)) return Right::kNo;
    taps = std::min(taps * kernel, Wide{1} << 60);
    if (std::max({stride, padding, dilation, taps}) > kTall) right = Right::kMaybe;
  }
  return right;
}

// Of everything but the index and the data, and whether those who judge may differ.
inline Right judge_shapes(const Operator& op, const Call& call) {
  if (call.no_window) return Right::kNo;
  Right right =
      both(judge(call.dy, false), both(judge(call.x, op.writes_x), judge(call.dw, !op.writes_x)));
  if (right == Right::kNo) return right;
  for (const neq_tensor* tensor : {&call.x, &call.dw}) {
    if (tensor->dtype != call.dy.dtype || tensor->ndim != call.dy.ndim) return Right::kNo;
  }
  if (call.dy.ndim != 3 && call.dy.ndim != 4) return Right::kNo;
  if (call.x.size[0] != call.dy.size[0] || call.dy.size[1] > INT32_MAX) return Right::kNo;
  if (call.width < 0 || call.width > call.dy.size[1]) return Right::kNo;
  right = both(right, both(op.judge_channels(call), judge_window(call)));
  return right == Right::kNo ? right : both(right, op.judge_limits(call));
}

inline Right judge_call(const Operator& op, const Call& call) {
  const Right right = judge_shapes(op, call);
  if (right == Right::kNo) return right;
  for (const neq_tensor* tensor : {&call.dy, &call.x, &call.dw}) {
    if (!tensor->data && extent_of(*tensor).count > 0) return Right::kNo;
  }
  return both(right, judge_index(call.index, call.width, call.dy.size[1]));
}

inline neq_status run(const Operator& op, const Call& call, void* db, neq_scratch scratch,
                      const neq_parallel* parallel) {
  return op.run(&call.dy, &call.x, call.index.data(), call.width,
                call.no_window ? nullptr : &call.window, &call.dw, db, scratch, parallel);
}

inline int64_t scratch_of(const Operator& op, const Call& call) {
  return op.scratch(&call.dy, &call.x, call.width, call.no_window ? nullptr : &call.window,
                    &call.dw);
}

inline double value_of(const neq_tensor& tensor, int64_t n, int64_t c, const int64_t* at) {
  int64_t offset = n * tensor.stride[0] + c * tensor.stride[1];
  for (int32_t d = 2; d < tensor.ndim; ++d) offset += at[d - 2] * tensor.stride[d];
  return value_at(static_cast<const uint8_t*>(tensor.data) + offset * bytes_of(tensor.dtype),
                  tensor.dtype);
}

// One weight, which lies at `tap`, between a channel of dy and one of x; without a tap, the bias.
inline double expected_sum(const Call& call, int64_t output, int64_t input, const int64_t* tap) {
  const int32_t dims = call.dy.ndim - 2;
  const int64_t wide = dims == 2 ? call.dy.size[3] : 1;
  double sum = 0;
  for (int64_t k = 0; k < call.dy.size[0] * call.dy.size[2] * wide; ++k) {
    const int64_t n = k / (call.dy.size[2] * wide);
    const int64_t at[2] = {k / wide % call.dy.size[2], k % wide};
    int64_t from[2] = {0, 0};
    bool inside = true;
    for (int32_t d = 0; tap && d < dims; ++d) {
      from[d] =
          at[d] * call.window.stride[d] + tap[d] * call.window.dilation[d] - call.window.padding[d];
      inside &= from[d] >= 0 && from[d] < call.x.size[2 + d];
    }
    if (!inside) continue;
    sum += value_of(call.dy, n, output, at) * (tap ? value_of(call.x, n, input, from) : 1);
  }
  return sum;
}

// What is not a number in one place of a tensor, one that has any.
inline void spoil(Input& input, Memory* memory, int32_t dtype) {
  const int64_t count = memory->bytes() / bytes_of(dtype);
  if (count == 0) return;
  uint8_t* const at = memory->data() + input.between(0, count - 1) * bytes_of(dtype);
  std::memset(at, 0xff, bytes_of(dtype));
}

inline bool spoiled(const neq_tensor& tensor, int64_t channel) {
  const int64_t wide = tensor.ndim == 4 ? tensor.size[3] : 1;
  for (int64_t k = 0; k < tensor.size[0] * tensor.size[2] * wide; ++k) {
    const int64_t at[2] = {k / wide % tensor.size[2], k % wide};
    if (std::isnan(value_of(tensor, k / (tensor.size[2] * wide), channel, at))) return true;
  }
  return false;
}

// Every sum but those with a channel that is spoiled.
inline void compare(const Operator& op, const Call& call, const uint8_t* db) {
  const int32_t dtype = call.dy.dtype;
  const double eps = dtype == NEQ_F16 ? 0x1p-11 : dtype == NEQ_BF16 ? 0x1p-8 : 0;
  const int64_t wide = call.dw.ndim == 4 ? call.dw.size[3] : 1;
  const auto check = [&](double found, double expected) {
    CHECK(std::abs(found - expected) <= eps * std::abs(expected));
  };
  for (int64_t row = 0; row < call.dw.size[0]; ++row) {
    const int64_t output = op.output_of(call, row);
    if (output >= 0 && spoiled(call.dy, output)) continue;
    for (int64_t c = 0; c < call.dw.size[1]; ++c) {
      const int64_t input = op.input_of(call, row) + c;
      if (output >= 0 && spoiled(call.x, input)) continue;
      for (int64_t k = 0; k < call.dw.size[2] * wide; ++k) {
        const int64_t tap[2] = {k / wide, k % wide};
        check(value_of(call.dw, row, c, tap),
              output < 0 ? 0 : expected_sum(call, output, input, tap));
      }
    }
    if (!db) continue;
    check(value_at(db + row * bytes_of(dtype), dtype),
          output < 0 ? 0 : expected_sum(call, output, 0, nullptr));
  }
}

inline void must_be_refused(const Operator& op, const Call& given) {
  Call call = given;
  uint64_t target = 0x5a5a5a5a5a5a5a5a;
  const uint64_t before = target;
  if (call.dw.data) call.dw.data = &target;
  double room[8];
  CHECK(run(op, call, call.bias ? &target : nullptr, {room, sizeof room}, nullptr) != NEQ_OK);
  CHECK(error_names({"dy:", "x:", "index:", "width:", "window:", "dw:"}));
  CHECK(target == before);
}

// Calls that only take long are not made: tiles of what little memory there is may be large.
inline bool quick(const Call& call, int64_t bytes) {
  const Wide weights = std::min(extent_of(call.dw).count, Wide{kMostBytes});
  return bytes >= 0 && bytes <= int64_t{1} << 22 && call.dy.size[1] <= kMostBytes &&
         weights * (bytes + 1) * std::max<int64_t>(call.dy.size[0], 1) <= Wide{1} << 32;
}

inline void fuzz_convolution(const Operator& op, Input& input) {
  force_isa(input);
  Call call = random_call(op, input);
  double present = 0;
  call.dy.data = call.x.data = call.dw.data = &present;
  if (input.once_in(2)) break_something(input, &call);
  const Right right = judge_call(op, call);
  const int64_t bytes = scratch_of(op, call);
  if (judge_shapes(op, call) == Right::kNo) CHECK(bytes == -1);
  if (right == Right::kNo) return must_be_refused(op, call);
  CHECK(bytes >= 0 || (right == Right::kMaybe && error_names({"dy:", "x:", "window:", "dw:"})));
  const bool listed = call.width <= static_cast<int64_t>(call.index.size());
  if (!listed || !small(call.dy) || !small(call.x) || !small(call.dw)) return;
  if (overlaps(call.dw) || !quick(call, bytes)) return;

  Memory dy(memory_bytes(call.dy));
  Memory x(memory_bytes(call.x));
  Memory dw(memory_bytes(call.dw));
  Memory db(call.bias ? call.dw.size[0] * bytes_of(call.dy.dtype) : 0);
  const bool any_bits = input.once_in(8);
  fill_with_quarters(&dy, call.dy.dtype, input.bits(4), false);
  fill_with_quarters(&x, call.x.dtype, input.bits(4), false);
  if (any_bits) x.randomize(input.bits(4));
  if (input.once_in(4)) spoil(input, input.once_in(2) ? &x : &dy, call.dy.dtype);
  call.dy.data = dy.data();
  call.x.data = x.data();
  call.dw.data = dw.data();
  const std::vector<uint8_t> before = dw.copy();
  if (input.once_in(8) && bytes > 0) {
    Memory little(bytes - 1);
    CHECK_REFUSED(run(op, call, db.data(), {little.data(), bytes - 1}, nullptr), "scratch:");
    CHECK(dw.equals(before));
  }
  // Off a cache line by as much as may be.
  const int64_t off = input.between(0, 7) * 8;
  Memory scratch(bytes + off);
  const neq_scratch room = {scratch.data() ? scratch.data() + off : nullptr, bytes};
  CHECK(run(op, call, db.data(), room, any_threads(input)) == NEQ_OK);
  if (!any_bits) compare(op, call, db.data());
}
