// neq_depthwise_wgrad_cpu on right and wrong arguments. fp32 holds the short sums of products of
// quarters exactly, so right calls must give what a loop nest gives, rounded once.
#include "input.h"

namespace {

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

constexpr Wide kTall = Wide{1} << 20;  // what no real window reaches

Wide out_of(const Call& call, int32_t d) {
  const Wide reach = Wide{call.window.dilation[d]} * (Wide{call.dw.size[2 + d]} - 1);
  const Wide room = Wide{call.x.size[2 + d]} + Wide{call.window.padding[d]} * 2 - reach - 1;
  return room < 0 ? 0 : room / call.window.stride[d] + 1;
}

// The channels innermost, as in channels_last, with or without a gap.
void lay_out_last(Input& input, neq_tensor* tensor) {
  int64_t stride = std::max<int64_t>(tensor->size[1], 1) + (input.once_in(4) ? 3 : 0);
  tensor->stride[1] = 1;
  for (int32_t d = tensor->ndim - 1; d >= 0; d -= d == 2 ? 2 : 1) {
    tensor->stride[d] = stride;
    stride *= std::max<int64_t>(tensor->size[d], 1);
  }
}

Call random_call(Input& input) {
  Call call;
  const auto dims = static_cast<int32_t>(input.between(1, 2));
  call.dy.dtype = static_cast<int32_t>(input.between(NEQ_F32, NEQ_BF16));
  call.dy.ndim = 2 + dims;
  call.x = call.dw = call.dy;
  call.x.size[0] = call.dy.size[0] = input.between(0, 3);
  call.x.size[1] = input.between(0, input.once_in(3) ? 40 : 6);
  call.dy.size[1] = call.dw.size[0] = call.x.size[1] * input.between(1, 3);
  call.dw.size[1] = 1;
  for (int32_t d = 0; d < dims; ++d) {
    call.x.size[2 + d] = input.between(0, dims == 1 && input.once_in(4) ? 90 : 11);
    call.dw.size[2 + d] = input.between(1, input.once_in(4) ? 5 : 3);
    call.window.stride[d] = input.between(1, 3);
    call.window.padding[d] = input.between(0, 3);
    call.window.dilation[d] = input.between(1, 3);
    call.dy.size[2 + d] = static_cast<int64_t>(out_of(call, d));
  }
  const int64_t every = input.between(1, 6);
  for (int32_t c = 0; c < call.dy.size[1]; ++c) {
    if (input.bits(1) % every == 0) call.index.push_back(c);
  }
  const auto room = call.dy.size[1] - static_cast<int64_t>(call.index.size());
  if (input.once_in(3)) call.index.insert(call.index.end(), input.between(0, room), -1);
  call.width = static_cast<int64_t>(call.index.size());
  for (neq_tensor* tensor : {&call.dy, &call.x}) {
    input.once_in(2) ? lay_out_last(input, tensor) : lay_out(input, tensor, false);
  }
  lay_out(input, &call.dw, true);
  call.bias = input.once_in(2);
  return call;
}

void break_something(Input& input, Call* call) {
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
      numbers[place % 3][input.between(0, call->dy.ndim - 3)] = input.wild();
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

Right judge_window(const Call& call) {
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
Right judge_shapes(const Call& call) {
  if (call.no_window) return Right::kNo;
  Right right = both(judge(call.dy, false), both(judge(call.x, false), judge(call.dw, true)));
  if (right == Right::kNo) return right;
  for (const neq_tensor* tensor : {&call.x, &call.dw}) {
    if (tensor->dtype != call.dy.dtype || tensor->ndim != call.dy.ndim) return Right::kNo;
  }
  if (call.dy.ndim != 3 && call.dy.ndim != 4) return Right::kNo;
  const int64_t outputs = call.dy.size[1];
  const int64_t inputs = call.x.size[1];
  if (call.x.size[0] != call.dy.size[0]) return Right::kNo;
  if (inputs == 0 ? outputs != 0 : outputs % inputs != 0) return Right::kNo;
  if (call.dw.size[0] != outputs || call.dw.size[1] != 1) return Right::kNo;
  if (outputs > INT32_MAX || call.width < 0 || call.width > outputs) return Right::kNo;
  return both(right, judge_window(call));
}

Right judge_call(const Call& call) {
  const Right right = judge_shapes(call);
  if (right == Right::kNo) return right;
  for (const neq_tensor* tensor : {&call.dy, &call.x, &call.dw}) {
    if (!tensor->data && extent_of(*tensor).count > 0) return Right::kNo;
  }
  return both(right, judge_index(call.index, call.width, call.dy.size[1]));
}

neq_status run(const Call& call, void* db, neq_scratch scratch, const neq_parallel* parallel) {
  return neq_depthwise_wgrad_cpu(&call.dy, &call.x, call.index.data(), call.width,
                                 call.no_window ? nullptr : &call.window, &call.dw, db, scratch,
                                 parallel);
}

int64_t scratch_of(const Call& call) {
  return neq_depthwise_wgrad_cpu_scratch(&call.dy, &call.x, call.width,
                                         call.no_window ? nullptr : &call.window, &call.dw);
}

double value_of(const neq_tensor& tensor, int64_t n, int64_t c, const int64_t* at) {
  int64_t offset = n * tensor.stride[0] + c * tensor.stride[1];
  for (int32_t d = 2; d < tensor.ndim; ++d) offset += at[d - 2] * tensor.stride[d];
  return value_at(static_cast<const uint8_t*>(tensor.data) + offset * bytes_of(tensor.dtype),
                  tensor.dtype);
}

// One weight, which lies at `tap`; without a tap, the bias.
double expected_sum(const Call& call, int64_t channel, const int64_t* tap) {
  const int32_t dims = call.dy.ndim - 2;
  const int64_t wide = dims == 2 ? call.dy.size[3] : 1;
  const int64_t multiplier = call.dy.size[1] / call.x.size[1];
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
    sum += value_of(call.dy, n, channel, at) *
           (tap ? value_of(call.x, n, channel / multiplier, from) : 1);
  }
  return sum;
}

void compare(const Call& call, const uint8_t* db) {
  const int32_t dtype = call.dy.dtype;
  const double eps = dtype == NEQ_F16 ? 0x1p-11 : dtype == NEQ_BF16 ? 0x1p-8 : 0;
  const int64_t wide = call.dw.ndim == 4 ? call.dw.size[3] : 1;
  for (int64_t channel = 0; channel < call.dy.size[1]; ++channel) {
    const bool active = std::count(call.index.begin(), call.index.begin() + call.width, channel);
    for (int64_t k = 0; k < call.dw.size[2] * wide; ++k) {
      const int64_t tap[2] = {k / wide, k % wide};
      const double expected = active ? expected_sum(call, channel, tap) : 0;
      CHECK(std::abs(value_of(call.dw, channel, 0, tap) - expected) <= eps * std::abs(expected));
    }
    if (!db) continue;
    const double expected = active ? expected_sum(call, channel, nullptr) : 0;
    const double got = value_at(db + channel * bytes_of(dtype), dtype);
    CHECK(std::abs(got - expected) <= eps * std::abs(expected));
  }
}

void must_be_refused(const Call& given) {
  Call call = given;
  uint64_t target = 0x5a5a5a5a5a5a5a5a;
  const uint64_t before = target;
  if (call.dw.data) call.dw.data = &target;
  double room[8];
  CHECK(run(call, call.bias ? &target : nullptr, {room, sizeof room}, nullptr) != NEQ_OK);
  CHECK(error_names({"dy:", "x:", "index:", "width:", "window:", "dw:"}));
  CHECK(target == before);
}

}  // namespace

void fuzz(Input& input) {
  force_isa(input);
  Call call = random_call(input);
  double present = 0;
  call.dy.data = call.x.data = call.dw.data = &present;
  if (input.once_in(2)) break_something(input, &call);
  const Right right = judge_call(call);
  const int64_t bytes = scratch_of(call);
  if (judge_shapes(call) == Right::kNo) CHECK(bytes == -1);
  if (right == Right::kNo) return must_be_refused(call);
  CHECK(bytes >= 0 || (right == Right::kMaybe && error_names({"dy:", "x:", "window:", "dw:"})));
  const bool listed = call.width <= static_cast<int64_t>(call.index.size());
  if (!listed || !small(call.dy) || !small(call.x) || !small(call.dw)) return;
  if (overlaps(call.dw)) return;
  if (bytes < 0 || bytes > int64_t{1} << 22 || call.dy.size[1] > kMostBytes) return;

  Memory dy(memory_bytes(call.dy));
  Memory x(memory_bytes(call.x));
  Memory dw(memory_bytes(call.dw));
  Memory db(call.bias ? call.dy.size[1] * bytes_of(call.dy.dtype) : 0);
  const bool any_bits = input.once_in(8);
  fill_with_quarters(&dy, call.dy.dtype, input.bits(4), false);
  fill_with_quarters(&x, call.x.dtype, input.bits(4), false);
  if (any_bits) x.randomize(input.bits(4));
  call.dy.data = dy.data();
  call.x.data = x.data();
  call.dw.data = dw.data();
  const std::vector<uint8_t> before = dw.copy();
  if (input.once_in(8) && bytes > 0) {
    Memory little(bytes - 1);
    CHECK_REFUSED(run(call, db.data(), {little.data(), bytes - 1}, nullptr), "scratch:");
    CHECK(dw.equals(before));
  }
  Memory scratch(bytes);
  CHECK(run(call, db.data(), {scratch.data(), bytes}, any_threads(input)) == NEQ_OK);
  if (!any_bits) compare(call, db.data());
}
