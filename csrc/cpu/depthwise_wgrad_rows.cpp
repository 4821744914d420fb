// Vectors of neighbouring positions of a row, and walks down the columns (depthwise_wgrad_walk.h).
// Lanes whose tap meets no position of x, or beyond the row, are masked: there is no padding in
// memory, and nothing is copied. Short planes are walked sample by sample in one go. While a unit
// is summed, the next one comes into the cache: planes are short runs of memory, streams of their
// own which no processor foresees.
#include "depthwise_wgrad_rows.h"

#include <cstring>

namespace neq::depthwise {
namespace {

constexpr int64_t kUnitBytes = 24 << 10;  // with which x and dy stay in the first cache
constexpr int64_t kFewestRows = 8;
constexpr int64_t kMinTaskVectors = 4 << 10;
// Shorter planes are better staged, where rows share vectors.
constexpr int64_t kLeastRows = 3;

class Task {
 public:
  Task(const RowsPlan& plan, char* tile) noexcept
      : plan_(plan), c_(*plan.convolution), sums_(tile) {}

  void run(int64_t first, int64_t last) noexcept {
    std::memset(sums_, 0, plan_.sums() * plan_.kernels->lanes * plan_.scalar);
    for (int64_t item = first; item < last;) {
      const int64_t block = item / plan_.count;
      const int64_t begin = block_start(block, plan_.blocks, plan_.units);
      const int64_t end = block_start(block + 1, plan_.blocks, plan_.units);
      const int64_t stop = std::min(last, (block + 1) * plan_.count);
      for (; item < stop; ++item) {
        const int64_t i = item - block * plan_.count;
        sum_channel(i, item + 1 < stop ? i + 1 : i, begin, end, plan_.partial_of(block, i));
      }
    }
  }

 private:
  struct Unit {
    int64_t sample;
    int64_t samples;
    int64_t row;
    int64_t rows;
    int64_t top;  // the first row of x that may be met, if `row` is not all in the padding
    int64_t dy;   // where these are, in elements
    int64_t x;
  };

  // The channel at place `i` of the list, while what comes first at place `next` is fetched.
  void sum_channel(int64_t i, int64_t next, int64_t begin, int64_t end, double* totals) noexcept {
    std::fill_n(totals, plan_.sums(), 0.0);
    Unit unit = unit_of(i, begin);
    for (int64_t k = begin; k < end; ++k) {
      const Unit following = k + 1 < end ? unit_of(i, k + 1) : unit_of(next, begin);
      sum_unit(unit, following, totals);
      unit = following;
    }
    add(totals);
  }

  Unit unit_of(int64_t i, int64_t ordinal) const noexcept {
    const Axis& axis = c_.axis[0];
    Unit unit{};
    if (plan_.band.parts == 1) {
      unit.sample = ordinal * plan_.samples;
    } else {
      unit.sample = ordinal / plan_.band.parts;
      unit.row = ordinal % plan_.band.parts * plan_.band.part;
    }
    unit.samples = std::min(plan_.samples, c_.batch - unit.sample);
    unit.rows = std::min(plan_.band.part, axis.out - unit.row);
    unit.top = std::clamp<int64_t>(unit.row * axis.stride - axis.padding, 0, axis.in - 1);
    const int64_t output = plan_.index[i];
    const int64_t input = c_.multiplier == 1 ? output : output / c_.multiplier;
    unit.dy = unit.sample * c_.dy.batch + output * c_.dy.channel + unit.row * c_.dy.axis[0];
    unit.x = unit.sample * c_.x.batch + input * c_.x.channel + unit.top * c_.x.axis[0];
    return unit;
  }

  char* sums(int64_t tap) const noexcept {
    return sums_ + tap * plan_.kernels->lanes * plan_.scalar;
  }

  void add(double* totals) noexcept {
    plan_.kernels->add_lanes(totals, sums_, plan_.sums());
    pending_ = 0;
  }

  void sum_unit(const Unit& unit, const Unit& next, double* totals) noexcept {
    const int64_t lanes = plan_.kernels->lanes;
    Walk walk{};
    walk.lines = unit.samples;
    walk.dy_line = c_.dy.batch;
    walk.x_line = c_.x.batch;
    walk.steps = unit.rows;
    walk.dy_step = c_.dy.axis[0];
    walk.x_step = plan_.along.step * c_.x.axis[0];
    walk.x_across = c_.axis[1].dilation;
    walk.sums_across = lanes;
    walk.sums_along = c_.axis[1].kernel * lanes;
    walk.dy_memory = plan_.dy_memory;
    walk.x_memory = plan_.x_memory;
    walk.dy_ahead = next.dy - unit.dy;
    const int64_t shift = (next.row - unit.row) * c_.axis[0].stride - (next.top - unit.top);
    walk.x_ahead = next.x - unit.x + shift * c_.x.axis[0];
    for (int64_t column = 0; column < c_.axis[1].out; column += lanes) {
      if (pending_ + walk.lines * walk.steps > kMaxWalk) add(totals);
      pending_ += walk.lines * walk.steps;
      walk.dy = plan_.dy + (unit.dy + column) * plan_.element;
      walk.dy_lanes = {0, std::min(lanes, c_.axis[1].out - column)};
      for (int64_t down = 0; down < plan_.tall.chunks; ++down) {
        for (int64_t right = 0; right < plan_.wide.chunks; ++right) {
          sum_taps(walk, unit, column, down, right);
        }
      }
    }
  }

  // A chunk of the taps, of which the first also sees to the bias.
  void sum_taps(Walk walk, const Unit& unit, int64_t column, int64_t down,
                int64_t right) const noexcept {
    const int64_t r = plan_.tall.start(down);
    const int64_t s = plan_.wide.start(right);
    const int64_t across = plan_.wide.start(right + 1) - s;
    const int64_t taps = plan_.tall.start(down + 1) - r;
    const Meeting rows = plan_.along.meeting(c_.axis[0], unit.row, unit.rows, r, taps);
    bool meets = false;
    for (int64_t tap = 0; tap < across; ++tap) {
      const Meeting columns = Meeting::of(c_.axis[1], column, s + tap, c_.axis[1].stride);
      const int64_t end = std::min(columns.begin + columns.count, walk.dy_lanes.end);
      walk.x_lanes[tap] = {std::min(columns.begin, std::max<int64_t>(end, 0)), end};
      meets |= !walk.x_lanes[tap].empty();
    }
    const bool first = down == 0 && right == 0;
    if (!meets && !first) return;
    walk.begin = rows.begin;
    walk.count = meets ? rows.count : 0;
    const int64_t left = column * c_.axis[1].stride + s * c_.axis[1].dilation - c_.axis[1].padding;
    const int64_t x =
        walk.count == 0 ? unit.x : unit.x + (rows.first - unit.top) * c_.x.axis[0] + left;
    walk.x = plan_.x + x * plan_.element;
    if (!first) walk.dy_ahead = walk.x_ahead = 0;
    const WalkLoop loop =
        plan_.kernels->loop(across, taps, taps > 1 ? plan_.along.stride : 1, c_.axis[1].stride);
    loop(sums(r * c_.axis[1].kernel + s), first ? sums(c_.taps()) : nullptr, walk);
  }

  const RowsPlan& plan_;
  const Convolution& c_;
  char* sums_;
  int64_t pending_ = 0;
};

}  // namespace

bool RowsPlan::suits(const Convolution& c) noexcept {
  return c.dy.axis[1] == 1 && c.x.axis[1] == 1 && c.axis[1].stride <= 2 &&
         c.axis[0].out >= kLeastRows && c.axis[0].in > 0 && c.axis[1].in > 0;
}

void RowsPlan::prepare(const Convolution& c, int64_t width) noexcept {
  start(c, width);
  kernels = &best_walks(c.dtype);
  along = Along::of(c.axis[0]);
  tall = TapChunks::of(c.axis[0], along.taps);
  wide = TapChunks::of(c.axis[1], kMaxAcross);
  vectors = width;
  lanes = 1;
  const double row = static_cast<double>(c.axis[1].out * element) +
                     static_cast<double>(c.axis[1].in * element) *
                         static_cast<double>(std::min(c.axis[0].stride, c.axis[0].in));
  const auto fit = static_cast<int64_t>(static_cast<double>(kUnitBytes) / row);
  band = Cut::of(c.axis[0].out, std::clamp(fit, kFewestRows, kMaxWalk));
  samples = 1;
  if (band.parts == 1) {
    samples = std::clamp<int64_t>(std::min(fit, kMaxWalk) / band.part, 1, c.batch);
  }
  units = divide_up(c.batch, samples) * band.parts;
  const int64_t channels = std::max<int64_t>(width, 1);
  blocks = std::clamp<int64_t>(kMaxTasks / channels, 1, units);
  tile_bytes = round_up(sums() * kernels->lanes * scalar, kCacheLine);
  const double work = static_cast<double>(channels * c.batch) *
                      static_cast<double>(divide_up(c.axis[1].out, kernels->lanes)) *
                      static_cast<double>(c.axis[0].out);
  const auto worth = static_cast<int64_t>(std::min(work / kMinTaskVectors, 64.0));
  tasks = std::max<int64_t>(
      1, std::min({worth, kMaxTasks, channels * blocks, kScratchBytes / tile_bytes}));
}

void RowsPlan::run(int64_t task, char* tile) const noexcept {
  const int64_t items = count * blocks;
  Task(*this, tile).run(block_start(task, tasks, items), block_start(task + 1, tasks, items));
}

}  // namespace neq::depthwise
