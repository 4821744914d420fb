#include "conv_dgrad_plan.h"

#include <algorithm>

#include "status.h"
#include "tensor.h"

namespace neq::dgrad {
namespace {

// A task has at least this many multiplications, unless there is but one.
constexpr double kTaskWork = 1 << 19;
constexpr double kMostTasks = 16;
// What is staged of dy at a time: a part of the second cache.
constexpr int64_t kStagedBytes = 192 << 10;
// But so many positions that weights beyond the cache are not read for a few.
constexpr int64_t kLeastPositions = 144;
// Positions of a row taken at once, and of a task at least.
constexpr int64_t kRowPositions = 1024;
constexpr int64_t kTaskPositions = 96;
// Fewer channels would leave lanes empty.
constexpr int64_t kFewestLanes = 8;
constexpr double kMost = 1 << 30;

const Kernels& best_kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_kernels(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_kernels(dtype);
#endif
  return scalar_kernels(dtype);
}

neq_status unsupported() noexcept {
  return fail(NEQ_UNSUPPORTED,
              "window: expected strides and dilations that cut dx into at most %d phases, and "
              "tiles of less than 2^30 elements",
              static_cast<int>(kMostPhases));
}

int64_t greatest_divisor(int64_t a, int64_t b) noexcept {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// As many units at once as fit the cache by what a unit stages.
int64_t units_within(const Call& call, int64_t unit_bytes) noexcept {
  if (call.parts_of_row > 1) return 1;
  const int64_t most = std::min(call.units, kMostUnits);
  const int64_t least = std::min(divide_up(kLeastPositions, call.side[1].steps), most);
  return std::clamp(kStagedBytes / std::max<int64_t>(unit_bytes, 1), least, most);
}

// Into tasks by the sizes alone, along whatever is longer first: the other operand is then staged
// less often.
void cut(Call* call, double work) noexcept {
  const Convolution& c = call->convolution;
  const auto wanted = static_cast<int64_t>(std::clamp(work / kTaskWork, 1.0, kMostTasks));
  const double positions = static_cast<double>(c.batch) * c.axis[0].in * c.axis[1].in;
  const auto enough = static_cast<int64_t>(std::min(positions / kTaskPositions, kMostTasks));
  const int64_t most_units = std::clamp<int64_t>(enough, 1, call->units);
  if (positions >= c.inputs) {
    call->unit_parts = std::min(wanted, most_units);
    call->channel_parts = std::clamp<int64_t>(wanted / call->unit_parts, 1, call->channel_units);
  } else {
    call->channel_parts = std::min(wanted, call->channel_units);
    call->unit_parts = std::clamp<int64_t>(wanted / call->channel_parts, 1, most_units);
  }
}

// Memory of a thread, in elements; false where that is too much.
bool measure(Call* call) noexcept {
  const Convolution& c = call->convolution;
  const Side& tall = call->side[0];
  const int64_t slabs = std::min(
      {call->units_at_once, call->units_at_once / tall.steps + 2, std::max<int64_t>(c.batch, 1)});
  const int64_t rows = call->units_at_once + slabs * tall.reach;
  if (static_cast<double>(rows) * call->pitch > kMost) return false;
  call->plane = rows * call->pitch + staging::kMaxLanes;
  const int64_t channels =
      divide_up(call->channel_units, call->channel_parts) * call->channels_of_unit;
  const double length = static_cast<double>(call->width) * call->taps();
  if (length > kMost || length * channels > kMost ||
      static_cast<double>(call->plane) * call->width > kMost) {
    return false;
  }
  call->weights = round_up(static_cast<int64_t>(length) * channels, kCacheLine);
  call->staged = call->plane * call->width + staging::kMaxLanes;
  const int64_t positions =
      round_up(call->units_at_once * (call->pitch - call->side[1].reach), staging::kMaxLanes);
  double columns = 0;
  for (int64_t a = 0; a < tall.phases; ++a) {
    for (int64_t b = 0; b < call->side[1].phases; ++b) {
      const double taps = static_cast<double>(tall.phase[a].taps) * call->side[1].phase[b].taps;
      columns += taps * call->width * positions;
    }
  }
  if (columns > kMost) return false;
  call->columns = call->pixels ? 0 : static_cast<int64_t>(columns);
  const int64_t tile = 2 * kMostRows * kMostVectors * staging::kMaxLanes;
  call->tile_bytes = round_up(call->columns * call->scalar, kCacheLine) +
                     round_up(call->staged * call->scalar, kCacheLine) + tile * call->scalar;
  return true;
}

neq_status plan(Call* call) noexcept {
  const Convolution& c = call->convolution;
  for (int d = 0; d < 2; ++d) {
    if (!call->side[d].understand(c.axis[d])) return unsupported();
  }
  const Side& tall = call->side[0];
  const Side& wide = call->side[1];
  if (tall.phases * wide.phases > kMostPhases) return unsupported();
  call->pixels = c.x.channel == 1 && c.inputs >= kFewestLanes;
  call->run = call->pixels ? run_pixels : run_planes;
  call->paired =
      wide.phases > 0 && c.axis[1].stride == 2 && c.axis[1].in % 2 == 0 && c.x.axis[1] == 1;
  const auto whole = [&](int d) {
    const Side& side = call->side[d];
    return side.taps == 1 && side.lowest == 0 && side.phase[0].steps <= c.axis[d].out;
  };
  call->in_place = whole(0) && whole(1) && c.dy.axis[1] == 1 && call->element == call->scalar;
  call->parts_of_row = divide_up(wide.steps, kRowPositions);
  const double units = static_cast<double>(c.batch) * tall.steps * call->parts_of_row;
  const int64_t row = divide_up(wide.steps, call->parts_of_row);
  if (units > 0x1p40 || wide.reach > kMost) return unsupported();
  call->units = static_cast<int64_t>(units);
  call->pitch = row + wide.reach;
  double work = 0;
  for (int64_t a = 0; a < tall.phases; ++a) work += 1.0 * tall.phase[a].taps * tall.phase[a].steps;
  double across = 0;
  for (int64_t b = 0; b < wide.phases; ++b)
    across += 1.0 * wide.phase[b].taps * wide.phase[b].steps;
  work *= across * c.batch * c.inputs * call->width;
  const double unit =
      (call->pixels ? 1.0 * row : std::min(across, kMost) * tall.taps) * call->width;
  call->units_at_once =
      units_within(*call, static_cast<int64_t>(std::min(unit, kMost)) * call->scalar);
  call->channels_of_unit = call->pixels ? call->kernels->lanes : call->kernels->planes.rows;
  call->channel_units = divide_up(c.inputs, call->channels_of_unit);
  cut(call, work);
  return measure(call) ? NEQ_OK : unsupported();
}

}  // namespace

bool Side::understand(const Axis& axis) noexcept {
  const int64_t divisor = greatest_divisor(axis.stride, axis.dilation);
  period = axis.stride / divisor;
  drop = axis.dilation / divisor;
  steps = divide_up(axis.in, axis.stride);
  int64_t highest = 0;
  for (int64_t r = 0; r < std::min(period, axis.kernel); ++r) {
    const int64_t before = r * axis.dilation - axis.padding;
    const int64_t place = (before % axis.stride + axis.stride) % axis.stride;
    if (place >= axis.in) continue;
    const int64_t count = divide_up(axis.in - place, axis.stride);
    const int64_t shift = (place - before) / axis.stride;
    // Weights that meet an output: those whose shift is less than axis.out and more than -count.
    const int64_t all = divide_up(axis.kernel - r, period);
    const int64_t begin = shift < axis.out ? 0 : divide_up(shift - axis.out + 1, drop);
    const int64_t end = shift + count <= 0 ? 0 : std::min(divide_up(shift + count, drop), all);
    if (begin >= end || axis.out == 0) continue;
    if (phases == kMostPhases) return false;
    phase[phases] = {place, count, r + begin * period, shift - begin * drop, end - begin};
    const int64_t last = shift - (end - 1) * drop;
    lowest = phases == 0 ? last : std::min(lowest, last);
    highest = phases == 0 ? shift - begin * drop : std::max(highest, shift - begin * drop);
    taps += end - begin;
    ++phases;
  }
  reach = highest - lowest;
  gaps = phases < std::min(axis.stride, axis.in);
  return true;
}

neq_status prepare(const neq_tensor* dy, const neq_tensor* weight, int64_t width,
                   const neq_window* window, const neq_tensor* dx, Call* call) noexcept {
  Convolution& c = call->convolution;
  const neq_status status = understand(dy, dx, width, window, weight, Groups::kInput, &c);
  if (status != NEQ_OK) return status;
  call->width = width;
  call->element = element_bytes(c.dtype);
  call->scalar = c.dtype == NEQ_F64 ? 8 : 4;
  if (c.batch == 0 || c.inputs == 0 || c.axis[0].in == 0 || c.axis[1].in == 0) return NEQ_OK;
  call->kernels = &best_kernels(c.dtype);
  call->staging = &staging::best_kernels(c.dtype);
  return plan(call);
}

}  // namespace neq::dgrad
