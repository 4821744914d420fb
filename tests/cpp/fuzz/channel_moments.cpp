// neq_channel_moments_cpu on right and wrong arguments. Sums of quarters are exact in whatever
// order they are taken, so right calls must give the very numbers of a loop.
#include "input.h"

namespace {

struct Call {
  neq_tensor a{};
  neq_tensor b{};
  int32_t dim = 0;
  int32_t per_sample = 0;
};

Call random_call(Input& input) {
  Call call;
  call.a.dtype = static_cast<int32_t>(input.between(NEQ_F32, NEQ_BF16));
  call.a.ndim = static_cast<int32_t>(input.between(1, 4));
  call.dim = static_cast<int32_t>(input.between(0, call.a.ndim - 1));
  for (int32_t d = 0; d < call.a.ndim; ++d) call.a.size[d] = input.between(0, 9);
  call.a.size[call.dim] = input.between(0, input.once_in(3) ? 150 : 20);
  if (input.once_in(32)) {  // long enough for folded rows, or for partial sums
    const bool partial = input.once_in(8);
    for (int32_t d = 0; d < call.a.ndim; ++d) call.a.size[d] = input.between(1, 4);
    call.a.size[input.between(0, call.a.ndim - 1)] = input.between(2000, partial ? 60000 : 3000);
  }
  call.b = call.a;
  if (input.once_in(2)) call.b.dtype = static_cast<int32_t>(input.between(NEQ_F32, NEQ_BF16));
  lay_out(input, &call.a, false);
  if (input.once_in(2)) {
    lay_out(input, &call.b, false);
  } else {
    std::copy(call.a.stride, call.a.stride + NEQ_MAX_DIMS, call.b.stride);
  }
  call.per_sample = call.dim != 0 && input.once_in(2);
  return call;
}

void break_something(Input& input, Call* call) {
  switch (input.bits(1) % 5) {
    case 0:
      return damage(input, &call->a);
    case 1:
      return damage(input, &call->b);
    case 2: {  // of both, so that they agree
      const int64_t d = input.between(0, call->a.ndim - 1);
      const int64_t size = input.wild();
      const bool expanded = input.once_in(2);
      stretch(&call->a, d, size, expanded);
      stretch(&call->b, d, size, expanded);
      return;
    }
    case 3:
      call->per_sample = static_cast<int32_t>(input.wild());
      return;
    default:
      call->dim = static_cast<int32_t>(input.wild());
  }
}

Right judge_call(const Call& call) {
  const Right right = both(judge(call.a, false), judge(call.b, false));
  if (right == Right::kNo) return right;
  if (call.b.ndim != call.a.ndim) return Right::kNo;
  for (int32_t d = 0; d < call.a.ndim; ++d) {
    if (call.b.size[d] != call.a.size[d]) return Right::kNo;
  }
  if (call.dim < 0 || call.dim >= call.a.ndim) return Right::kNo;
  if (call.per_sample && call.dim == 0) return Right::kNo;
  const bool data = extent_of(call.a).count == 0 || (call.a.data && call.b.data);
  if (!data) return Right::kNo;
  // 2^54 elements are the promised limit; sizes beside one that is 0 count towards it.
  return extent_of(call.a).count > (Wide{1} << 40) ? Right::kMaybe : right;
}

int64_t numbers_of(const Call& call) {
  return 3 * (call.per_sample ? call.a.size[0] : 1) * call.a.size[call.dim];
}

neq_status run(const Call& call, double* moments, neq_scratch scratch,
               const neq_parallel* parallel) {
  return neq_channel_moments_cpu(&call.a, &call.b, call.dim, call.per_sample, moments, scratch,
                                 parallel);
}

void must_be_refused(const Call& call) {
  double moments[3] = {1, 2, 3};
  double room[8];
  CHECK(neq_channel_moments_cpu_scratch(&call.a, &call.b, call.dim, call.per_sample) == -1);
  CHECK(run(call, moments, {room, sizeof room}, nullptr) != NEQ_OK);
  CHECK(error_names({"a:", "b:", "dim:", "per_sample:"}));
  CHECK(moments[0] == 1 && moments[1] == 2 && moments[2] == 3);
}

void compare(const Call& call, const double* moments) {
  const int64_t channels = call.a.size[call.dim];
  const int64_t third = numbers_of(call) / 3;
  std::vector<double> expected(static_cast<size_t>(3 * third), 0.0);
  const auto count = static_cast<int64_t>(extent_of(call.a).count);
  for (int64_t k = 0; k < count; ++k) {
    int64_t at_a = 0, at_b = 0, channel = 0, sample = 0, rest = k;
    for (int32_t d = call.a.ndim - 1; d >= 0; --d) {
      const int64_t here = rest % call.a.size[d];
      rest /= call.a.size[d];
      at_a += here * call.a.stride[d];
      at_b += here * call.b.stride[d];
      if (d == call.dim) channel = here;
      if (d == 0 && call.per_sample) sample = here;
    }
    const auto* a_bytes = static_cast<const uint8_t*>(call.a.data);
    const auto* b_bytes = static_cast<const uint8_t*>(call.b.data);
    const double a = value_at(a_bytes + at_a * bytes_of(call.a.dtype), call.a.dtype);
    const double b = value_at(b_bytes + at_b * bytes_of(call.b.dtype), call.b.dtype);
    double* sums = expected.data() + sample * channels + channel;
    sums[0] += a * b;
    sums[third] += a * a;
    sums[2 * third] += b * b;
  }
  for (size_t i = 0; i < expected.size(); ++i) CHECK(moments[i] == expected[i]);
}

}  // namespace

void fuzz(Input& input) {
  force_isa(input);
  Call call = random_call(input);
  double present = 0;
  call.a.data = call.b.data = &present;
  if (input.once_in(2)) break_something(input, &call);
  const Right right = judge_call(call);
  if (right == Right::kNo) return must_be_refused(call);
  const int64_t bytes =
      neq_channel_moments_cpu_scratch(&call.a, &call.b, call.dim, call.per_sample);
  CHECK(bytes >= 0 || (right == Right::kMaybe && error_names({"a:", "b:"})));
  constexpr Wide kMost = 1 << 21;
  const bool short_enough = extent_of(call.a).span <= kMost && extent_of(call.b).span <= kMost &&
                            extent_of(call.a).count <= kMost;
  if (right != Right::kYes || !short_enough || numbers_of(call) > kMostBytes) return;

  Memory a(memory_bytes(call.a));
  Memory b(memory_bytes(call.b));
  const bool any_bits = input.once_in(8);
  fill_with_quarters(&a, call.a.dtype, input.bits(4), false);
  fill_with_quarters(&b, call.b.dtype, input.bits(4), false);
  if (any_bits) a.randomize(input.bits(4));
  call.a.data = a.data();
  call.b.data = b.data();
  Memory moments(numbers_of(call) * static_cast<int64_t>(sizeof(double)));
  auto* numbers = reinterpret_cast<double*>(moments.data());
  const std::vector<uint8_t> before = moments.copy();
  if (input.once_in(8) && bytes > 0) {
    Memory little(bytes - 1);
    CHECK_REFUSED(run(call, numbers, {little.data(), bytes - 1}, nullptr), "scratch:");
  }
  Memory scratch(bytes);
  if (numbers) CHECK_REFUSED(run(call, nullptr, {scratch.data(), bytes}, nullptr), "moments:");
  CHECK(moments.equals(before));
  CHECK(run(call, numbers, {scratch.data(), bytes}, any_threads(input)) == NEQ_OK);
  if (!any_bits) compare(call, numbers);
}
