// One channel's planes, rows one behind the other in a tile: tap (r, s) of dw is then
//   sum over t of dy[t] * x[t + r * pitch + s],
// a loop without borders. x has its padding in zeros, and where dy has none of x's, at the end of
// its rows, dy has zeros. Rows share their zeros with the next one, planes with the next sample,
// so that planes smaller than a vector fill vectors too. A stride splits x into phases: tiles of
// their own for columns 0, 2, 4, ... and 1, 3, 5, ..., likewise for rows.
#include "depthwise_wgrad_staged.h"

#include <cstring>
#include <numeric>

namespace neq::depthwise {
namespace {

constexpr int64_t kTileScalars = 6 << 10;  // with which x and dy stay in the first cache
constexpr int64_t kMaxTileScalars = int64_t{1} << 26;
constexpr int64_t kMaxColumns = 1024;
constexpr int64_t kMinTaskScalars = 16 << 10;
constexpr int64_t kPrefetchBytes = 4096;

using Side = StagedPlan::Side;

// Of the taps r with the same remainder of r * dilation modulo stride: `offset` is that remainder.
int64_t phase_offset(const Axis& axis, int64_t phase) noexcept {
  return phase * axis.dilation % axis.stride;
}

// The part of a band in one phase that x has: `length` positions from `lead` on, the first of them
// x's `start`.
struct Span {
  int64_t lead;
  int64_t length;
  int64_t start;
};

Span span(const Axis& axis, const Side& side, int64_t origin, int64_t phase) noexcept {
  const int64_t shift = phase_offset(axis, phase) - axis.padding + origin * axis.stride;
  const int64_t positions = side.band + side.reach;
  const int64_t lead = shift >= 0 ? 0 : std::min(divide_up(-shift, axis.stride), positions);
  const int64_t last = axis.in - 1 - shift;
  const int64_t end = last < 0 ? 0 : std::min(last / axis.stride + 1, positions);
  return {lead, std::max<int64_t>(end - lead, 0), shift + lead * axis.stride};
}

Side cut(const Axis& axis, int64_t longest) noexcept {
  Side side{};
  side.bands = divide_up(axis.out, std::max<int64_t>(longest, 1));
  side.band = divide_up(axis.out, side.bands);
  side.bands = divide_up(axis.out, side.band);
  side.phases = std::min(axis.kernel, axis.stride / std::gcd(axis.stride, axis.dilation));
  side.reach = (axis.kernel - 1) * axis.dilation / axis.stride;
  side.pitch = side.band + side.reach;
  if (side.bands > 1) return side;
  int64_t shared = side.reach;
  for (int64_t phase = 0; phase < side.phases; ++phase) {
    const Span s = span(axis, side, 0, phase);
    shared = std::min({shared, s.lead, side.pitch - s.lead - s.length});
  }
  side.pitch -= shared;
  return side;
}

const StagedKernels& best_kernels(neq_dtype dtype) noexcept {
#if defined(__x86_64__)
  if (neq_cpu_isa() >= NEQ_ISA_AVX512) return avx512_staged(dtype);
  if (neq_cpu_isa() >= NEQ_ISA_AVX2) return avx2_staged(dtype);
#endif
  return scalar_staged(dtype);
}

// How many rows fit, at the least as many as would be read again for the next band.
int64_t rows_per_tile(const Convolution& c, const Side& columns) noexcept {
  const Side rows = cut(c.axis[0], c.axis[0].out);
  const int64_t tiles = rows.phases * columns.phases + 1;
  const int64_t fit = kTileScalars / std::max<int64_t>(columns.pitch * tiles, 1) - rows.reach;
  return std::max({fit, 2 * rows.reach, int64_t{4}});
}

// Bands of dy, one behind the other in a tile: several samples' only where each is one band.
struct Units {
  int64_t sample;
  int64_t count;
  int64_t origin[2];
};

Units units_at(const StagedPlan& plan, int64_t tile) noexcept {
  const int64_t columns = plan.side[1].bands;
  const int64_t bands = plan.side[0].bands * columns;
  const int64_t sample = tile * plan.units / bands;
  const int64_t band = tile * plan.units % bands;
  return {sample,
          std::min(plan.units, plan.convolution->batch - sample),
          {band / columns * plan.side[0].band, band % columns * plan.side[1].band}};
}

template <class Scalar>
struct Tile {
  double* sums;  // [taps + 1][lanes]
  Scalar* dy;
  Scalar* x;
};

template <class Scalar>
Tile<Scalar> tile_at(const StagedPlan& plan, char* memory) noexcept {
  auto* scalars = reinterpret_cast<Scalar*>(memory + plan.sums_bytes);
  return {reinterpret_cast<double*>(memory), scalars, scalars + plan.dy_plane};
}

template <class Scalar>
void zero(Scalar* from, Scalar* to) noexcept {
  if (from < to) std::memset(from, 0, (to - from) * sizeof(Scalar));
}

template <class Scalar>
void stage_x(const StagedPlan& plan, const Units& units, const char* x, Scalar* target) noexcept {
  const Convolution& c = *plan.convolution;
  const int64_t pitch = plan.side[1].pitch;
  const int64_t unit = plan.side[0].pitch * pitch;
  for (int64_t a = 0; a < plan.side[0].phases; ++a) {
    const Span rows = span(c.axis[0], plan.side[0], units.origin[0], a);
    for (int64_t b = 0; b < plan.side[1].phases; ++b, target += plan.plane) {
      const Span columns = span(c.axis[1], plan.side[1], units.origin[1], b);
      Scalar* const end = target + plan.plane;
      if (rows.length == 0 || columns.length == 0) {
        zero(target, end);
        continue;
      }
      Scalar* const first = target + rows.lead * pitch + columns.lead;
      zero(target, first);
      const int64_t offset =
          units.sample * c.x.batch + rows.start * c.x.axis[0] + columns.start * c.x.axis[1];
      plan.staging->copy(first, {unit, pitch, pitch - columns.length, unit - rows.length * pitch},
                         {x + offset * plan.element, c.x.batch, c.axis[0].stride * c.x.axis[0],
                          c.axis[1].stride * c.x.axis[1], units.count, rows.length, columns.length,
                          plan.x_memory.end});
      zero(target + units.count * unit, end);
    }
  }
}

template <class Scalar>
void stage_dy(const StagedPlan& plan, const Units& units, const char* dy, Scalar* target) noexcept {
  const Convolution& c = *plan.convolution;
  const int64_t pitch = plan.side[1].pitch;
  const int64_t unit = plan.side[0].pitch * pitch;
  const int64_t rows = std::min(plan.side[0].band, c.axis[0].out - units.origin[0]);
  const int64_t columns = std::min(plan.side[1].band, c.axis[1].out - units.origin[1]);
  const int64_t offset =
      units.sample * c.dy.batch + units.origin[0] * c.dy.axis[0] + units.origin[1] * c.dy.axis[1];
  plan.staging->copy(target, {unit, pitch, pitch - columns, unit - rows * pitch},
                     {dy + offset * plan.element, c.dy.batch, c.dy.axis[0], c.dy.axis[1],
                      units.count, rows, columns, plan.dy_memory.end});
  zero(target + units.count * unit, target + plan.dy_plane);
}

// A tile's planes where each is a short run of memory, a stream of its own which no processor
// foresees. Inlined by force: a call that only prefetches looks like one without effect.
[[gnu::always_inline]] inline void prefetch(const char* tensor, const Strides& strides,
                                            int64_t rows, int64_t columns, const Units& units,
                                            int64_t element) noexcept {
  if (rows <= 0 || columns <= 0) return;
  const int64_t bytes =
      ((rows - 1) * strides.axis[0] + (columns - 1) * strides.axis[1] + 1) * element;
  if (bytes > kPrefetchBytes) return;
  for (int64_t u = 0; u < units.count; ++u) {
    const char* from = tensor + (units.sample + u) * strides.batch * element;
    for (int64_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(from + at, 0, 2);
    __builtin_prefetch(from + bytes - 1, 0, 2);
  }
}

template <class Scalar>
void correlate(const StagedPlan& plan, const Tile<Scalar>& tile, int64_t length) noexcept {
  const Convolution& c = *plan.convolution;
  const int64_t lanes = plan.kernels->lanes;
  const int64_t taps = c.taps();
  const int64_t vectors = divide_up(length, lanes);
  const int64_t chunks = divide_up(taps, kStagedTaps);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t from = block_start(chunk, chunks, taps);
    const int64_t to = block_start(chunk + 1, chunks, taps);
    const Scalar* at[kStagedTaps] = {};
    for (int64_t tap = from; tap < to; ++tap) {
      const int64_t r = tap / c.axis[1].kernel;
      const int64_t s = tap % c.axis[1].kernel;
      const int64_t phase = r % plan.side[0].phases * plan.side[1].phases + s % plan.side[1].phases;
      at[tap - from] = tile.x + phase * plan.plane +
                       r * c.axis[0].dilation / c.axis[0].stride * plan.side[1].pitch +
                       s * c.axis[1].dilation / c.axis[1].stride;
    }
    for (int64_t vector = 0; vector < vectors; vector += kStagedVectors) {
      const void* x[kStagedTaps];
      for (int64_t tap = 0; tap < to - from; ++tap) x[tap] = at[tap] + vector * lanes;
      plan.kernels->correlate(tile.sums + from * lanes, chunk ? nullptr : tile.sums + taps * lanes,
                              tile.dy + vector * lanes, x, to - from,
                              std::min(kStagedVectors, vectors - vector));
    }
  }
}

// The planes of one active channel.
struct Channel {
  const char* dy;
  const char* x;
};

Channel channel_of(const StagedPlan& plan, int64_t item) noexcept {
  const Convolution& c = *plan.convolution;
  const int64_t channel = plan.index[item % plan.count];
  return {plan.dy + channel * c.dy.channel * plan.element,
          plan.x + channel / c.multiplier * c.x.channel * plan.element};
}

[[gnu::always_inline]] inline void prefetch(const StagedPlan& plan, const Channel& channel,
                                            int64_t tile) noexcept {
  const Convolution& c = *plan.convolution;
  const Units units = units_at(plan, tile);
  prefetch(channel.dy, c.dy, c.axis[0].out, c.axis[1].out, units, plan.element);
  prefetch(channel.x, c.x, c.axis[0].in, c.axis[1].in, units, plan.element);
}

template <class Scalar>
void sum_tile(const StagedPlan& plan, const Tile<Scalar>& tile, const Channel& channel,
              int64_t ordinal) noexcept {
  const Units units = units_at(plan, ordinal);
  stage_dy(plan, units, channel.dy, tile.dy);
  stage_x(plan, units, channel.x, tile.x);
  correlate(plan, tile, units.count * plan.side[0].pitch * plan.side[1].pitch);
}

template <class Scalar>
void run_tasks(const StagedPlan& plan, int64_t task, char* memory) noexcept {
  const Tile<Scalar> tile = tile_at<Scalar>(plan, memory);
  const int64_t lanes = plan.kernels->lanes;
  const int64_t sums = plan.convolution->taps() + 1;
  const int64_t items = plan.count * plan.blocks;
  const int64_t last = block_start(task + 1, plan.tasks, items);
  for (int64_t item = block_start(task, plan.tasks, items); item < last; ++item) {
    const int64_t block = item / plan.count;
    const int64_t start = block_start(block, plan.blocks, plan.tile_count);
    const int64_t end = block_start(block + 1, plan.blocks, plan.tile_count);
    const Channel channel = channel_of(plan, item);
    zero(tile.sums, tile.sums + sums * lanes);
    for (int64_t t = start; t < end; ++t) {
      if (t + 1 < end) {
        prefetch(plan, channel, t + 1);
      } else if (item + 1 < last) {
        prefetch(plan, channel_of(plan, item + 1), start);
      }
      sum_tile(plan, tile, channel, t);
    }
    for (int64_t tap = 0; tap < sums; ++tap) {
      double sum = 0;
      for (int64_t lane = 0; lane < lanes; ++lane) sum += tile.sums[tap * lanes + lane];
      plan.partial[item * sums + tap] = sum;
    }
  }
}

}  // namespace

bool StagedPlan::prepare(const Convolution& c, int64_t width) noexcept {
  start(c, width);
  kernels = &best_kernels(c.dtype);
  staging = &staging::best_kernels(c.dtype);
  vectors = width;
  lanes = 1;
  const auto reach = [](const Axis& axis) {
    return (axis.kernel - 1) * axis.dilation / axis.stride;
  };
  if (std::max(reach(c.axis[0]), reach(c.axis[1])) > kMaxTileScalars) return false;
  side[1] = cut(c.axis[1], kMaxColumns);
  side[0] = cut(c.axis[0], rows_per_tile(c, side[1]));
  const Side& rows = side[0];
  const Side& columns = side[1];

  const int64_t phases = rows.phases * columns.phases;
  const int64_t all_units = c.batch * rows.bands * columns.bands;
  const double tile = static_cast<double>(rows.pitch + rows.reach) *
                      static_cast<double>(columns.pitch + columns.reach) *
                      static_cast<double>(phases + 1);
  if (tile > static_cast<double>(kMaxTileScalars)) return false;
  const int64_t unit = rows.pitch * columns.pitch;
  units = 1;
  if (rows.bands * columns.bands == 1) {
    units =
        std::clamp<int64_t>(kTileScalars / (unit * (phases + 1)), 1, std::max<int64_t>(c.batch, 1));
  }
  tile_count = divide_up(all_units, units);
  const int64_t length = units * unit;
  // Behind the last unit: what taps reach beyond it, or zeros that padding in front has shifted
  // there, the rest of a vector, and of a staged row.
  const auto beyond = [](const Axis& axis, const Side& side) {
    const int64_t lead = divide_up(axis.padding, axis.stride);
    return std::max(side.reach, std::min(lead, side.band + side.reach));
  };
  const int64_t behind = (beyond(c.axis[0], rows) + 1) * columns.pitch + beyond(c.axis[1], columns);
  dy_plane = round_up(length, staging::kMaxLanes) + staging::kMaxLanes;
  plane = round_up(length + behind + staging::kMaxLanes, staging::kMaxLanes) + staging::kMaxLanes;
  sums_bytes = round_up((c.taps() + 1) * kernels->lanes * 8, kCacheLine);
  tile_bytes = sums_bytes + round_up((dy_plane + phases * plane) * scalar, kCacheLine);
  // Blocks of tiles only where the channels alone leave threads without work.
  const int64_t channels = std::max<int64_t>(width, 1);
  blocks = std::clamp<int64_t>(kMaxTasks / channels, 1, std::max<int64_t>(tile_count, 1));
  const double work = static_cast<double>(channels * tile_count) * static_cast<double>(length);
  const auto worth = static_cast<int64_t>(std::min(work / kMinTaskScalars, 64.0));
  tasks = std::max<int64_t>(
      1, std::min({worth, kMaxTasks, channels * blocks, kScratchBytes / tile_bytes}));
  return true;
}

void StagedPlan::run(int64_t task, char* tile) const noexcept {
  if (scalar == 8) return run_tasks<double>(*this, task, tile);
  run_tasks<float>(*this, task, tile);
}

}  // namespace neq::depthwise
