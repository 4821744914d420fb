// Vectors of neighbouring channels, and walks along the rows of planes (depthwise_wgrad_walk.h):
// all lanes of a vector work, active or not, for where it lies in memory it is read as a whole
// anyhow. Only where few of many 16-bit channels are active, of which a line of memory has more
// than a vector has, are they packed first, a unit at a time (pack_channels).
#include "depthwise_wgrad_lanes.h"

#include <algorithm>
#include <cstring>

#include "cpu/pack_channels_plan.h"

namespace neq::depthwise {
namespace {

// Of one vector's channels in a unit, so that all of its walks find them in the first cache, and of
// a tile.
constexpr int64_t kUnitBytes = 32 << 10;
constexpr int64_t kTileBytes = 96 << 10;
constexpr double kMaxTileBytes = 1 << 28;
constexpr int64_t kChunkChannels = 256;
constexpr int64_t kPackedRows = 32;
// Bytes of the tensors for each byte of partial sums, at the least.
constexpr int64_t kBytesPerPartial = 64;

// Where channels lie side by side: in a tensor, or packed in a tile. Strides in elements.
struct Image {
  const char* data;  // of the unit's first position
  int64_t batch;
  int64_t row;
  int64_t column;
  Readable memory;
};

class Task {
 public:
  Task(const LanesPlan& plan, int64_t task, char* tile) noexcept
      : plan_(plan),
        c_(*plan.convolution),
        block_(task / plan.chunks),
        first_(task % plan.chunks * plan.chunk),
        last_(std::min(first_ + plan.chunk, plan.active_count)),
        sums_(tile),
        x_tile_(tile + round_up(plan.sums() * plan.lanes * plan.scalar, kCacheLine)),
        dy_tile_(x_tile_ + plan.x_bytes) {}

  void run() noexcept {
    const int64_t sums = plan_.sums() * plan_.lanes;
    std::memset(sums_, 0, sums * plan_.scalar);
    for (int64_t k = first_; k < last_; ++k) std::fill_n(partial(k), sums, 0.0);
    if (plan_.packed) plan_rows();
    const int64_t end = block_start(block_ + 1, plan_.blocks, plan_.units);
    for (int64_t unit = block_start(block_, plan_.blocks, plan_.units); unit < end; ++unit) {
      sum_unit(unit_of(unit), unit_of(std::min(unit + 1, end - 1)));
    }
  }

 private:
  struct Unit {
    int64_t sample;
    int64_t samples;
    int64_t origin[2];  // dy's
    int64_t out[2];
    int64_t from[2];  // x's that these meet
    int64_t in[2];
  };

  Unit unit_of(int64_t ordinal) const noexcept {
    const int64_t bands = plan_.band[0].parts * plan_.band[1].parts;
    const int64_t band = ordinal % bands;
    Unit unit{};
    unit.sample = ordinal / bands * plan_.samples;
    unit.samples = std::min(plan_.samples, c_.batch - unit.sample);
    const int64_t at[] = {band / plan_.band[1].parts, band % plan_.band[1].parts};
    for (int d = 0; d < 2; ++d) {
      const Axis& axis = c_.axis[d];
      unit.origin[d] = at[d] * plan_.band[d].part;
      unit.out[d] = std::min(plan_.band[d].part, axis.out - unit.origin[d]);
      const int64_t start = unit.origin[d] * axis.stride - axis.padding;
      const int64_t extent =
          (unit.out[d] - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
      unit.from[d] = std::clamp<int64_t>(start, 0, axis.in);
      unit.in[d] = std::clamp<int64_t>(start + extent, unit.from[d], axis.in) - unit.from[d];
    }
    return unit;
  }

  int64_t vector_of(int64_t k) const noexcept { return plan_.packed ? k : plan_.active_vectors[k]; }

  double* partial(int64_t k) const noexcept { return plan_.partial_of(block_, vector_of(k)); }

  Image image_of(const char* tensor, const Strides& strides, const Readable& memory,
                 const Unit& unit, const int64_t* origin) const noexcept {
    const int64_t at =
        unit.sample * strides.batch + origin[0] * strides.axis[0] + origin[1] * strides.axis[1];
    return {tensor + at * plan_.element, strides.batch, strides.axis[0], strides.axis[1], memory};
  }

  void sum_unit(const Unit& unit, const Unit& next) noexcept {
    Image dy = image_of(plan_.dy, c_.dy, plan_.dy_memory, unit, unit.origin);
    Image x = image_of(plan_.x, c_.x, plan_.x_memory, unit, unit.from);
    int64_t dy_ahead = 0;
    int64_t x_ahead = 0;
    if (plan_.packed) {
      dy = pack(dy, unit, unit.out, dy_rows_, dy_tile_);
      x = pack(x, unit, unit.in, x_rows_, x_tile_);
    } else {
      const int64_t samples = next.sample - unit.sample;
      const int64_t rows = next.origin[0] - unit.origin[0];
      const int64_t columns = next.origin[1] - unit.origin[1];
      dy_ahead = samples * dy.batch + rows * dy.row + columns * dy.column;
      x_ahead = samples * x.batch + rows * c_.axis[0].stride * x.row +
                columns * c_.axis[1].stride * x.column;
    }
    for (int64_t k = first_; k < last_; ++k) {
      const int64_t offset = (plan_.packed ? k - first_ : vector_of(k)) * plan_.lanes;
      const int64_t channels = plan_.packed ? plan_.count - first_ * plan_.lanes : c_.outputs;
      Walk walk{};
      walk.dy_step = dy.column;
      walk.x_step = plan_.along.step * x.column;
      walk.x_across = c_.axis[0].dilation * x.row;
      walk.sums_across = c_.axis[1].kernel * plan_.lanes;
      walk.sums_along = plan_.lanes;
      walk.dy_memory = dy.memory;
      walk.x_memory = x.memory;
      walk.dy_ahead = dy_ahead;
      walk.x_ahead = x_ahead;
      walk.dy_lanes = {0, std::min(plan_.lanes, channels - offset)};
      for (LaneRange& lanes : walk.x_lanes) lanes = walk.dy_lanes;
      walk.steps = unit.out[1];
      Image dy_vector = dy;
      Image x_vector = x;
      dy_vector.data += offset * plan_.element;
      x_vector.data += offset * plan_.element;
      for (int64_t down = 0; down < plan_.tall.chunks; ++down) {
        for (int64_t right = 0; right < plan_.wide.chunks; ++right) {
          sum_taps(walk, unit, dy_vector, x_vector, down, right, partial(k));
        }
      }
      add(partial(k));
    }
  }

  void add(double* totals) noexcept {
    plan_.kernels->add_each(totals, sums_, plan_.sums());
    pending_ = 0;
  }

  // The taps from r on, of at most `taps`, that reach a row of x from dy's row p.
  struct Reached {
    int64_t begin;
    int64_t end;
    bool operator==(const Reached& other) const noexcept {
      return begin == other.begin && end == other.end;
    }
  };

  Reached reached(int64_t p, int64_t r, int64_t taps) const noexcept {
    const Meeting rows = Meeting::of(c_.axis[0], p, r, c_.axis[0].dilation);
    const int64_t end = std::min(rows.begin + rows.count, taps);
    return {std::min(rows.begin, std::max<int64_t>(end, 0)), end};
  }

  // A chunk of the taps, of which the first also sees to the bias; rows that reach the same taps
  // are walked in one go.
  void sum_taps(Walk walk, const Unit& unit, const Image& dy, const Image& x, int64_t down,
                int64_t right, double* totals) noexcept {
    const int64_t r = plan_.tall.start(down);
    const int64_t s = plan_.wide.start(right);
    const int64_t across = plan_.tall.start(down + 1) - r;
    const int64_t along = plan_.wide.start(right + 1) - s;
    const bool first = down == 0 && right == 0;
    const Meeting columns = plan_.along.meeting(c_.axis[1], unit.origin[1], walk.steps, s, along);
    const int64_t stride = along > 1 ? plan_.along.stride : 1;
    const int64_t most = std::max<int64_t>(kMaxWalk / (walk.steps * unit.samples), 1);
    const int64_t x_ahead = walk.x_ahead;
    if (!first) walk.dy_ahead = 0;
    for (int64_t p = 0, end = 0; p < unit.out[0]; p = end) {
      const Reached taps = reached(unit.origin[0] + p, r, across);
      for (end = p + 1; end < unit.out[0] && end - p < most; ++end) {
        if (unit.samples > 1 || !(reached(unit.origin[0] + end, r, across) == taps)) break;
      }
      const bool meets = taps.begin < taps.end && columns.count > 0;
      if (!meets && !first) continue;
      walk.lines = unit.samples > 1 ? unit.samples : end - p;
      if (pending_ + walk.lines * walk.steps > kMaxWalk) add(totals);
      pending_ += walk.lines * walk.steps;
      walk.dy_line = unit.samples > 1 ? dy.batch : dy.row;
      walk.x_line = unit.samples > 1 ? x.batch : c_.axis[0].stride * x.row;
      walk.begin = columns.begin;
      walk.count = meets ? columns.count : 0;
      walk.dy = dy.data + p * dy.row * plan_.element;
      walk.x = x.data;
      int64_t count = 1;
      int64_t tap = 0;
      if (meets) {
        count = taps.end - taps.begin;
        tap = taps.begin;
        const int64_t row = (unit.origin[0] + p) * c_.axis[0].stride +
                            (r + tap) * c_.axis[0].dilation - c_.axis[0].padding;
        walk.x += ((row - unit.from[0]) * x.row + (columns.first - unit.from[1]) * x.column) *
                  plan_.element;
      }
      walk.x_ahead = first ? x_ahead + (count - 1) * walk.x_across : 0;
      walk.two_rows_ahead = first && count > 1 && c_.axis[0].stride > 1;
      const int64_t at = ((r + tap) * c_.axis[1].kernel + s) * plan_.lanes * plan_.scalar;
      void* const bias = first ? sums_ + c_.taps() * plan_.lanes * plan_.scalar : nullptr;
      plan_.kernels->loop(count, along, stride, 1)(sums_ + at, bias, walk);
    }
  }

  void plan_rows() noexcept {
    pack::Group* const groups = plan_.groups + block_ * 2 * plan_.count;
    const int64_t first = first_ * plan_.lanes;
    const int64_t count = std::min(plan_.chunk * plan_.lanes, plan_.count - first);
    const pack::Kernels& kernels = pack::best_kernels(c_.dtype);
    dy_rows_ = {plan_.index + first, groups + first, 0, 0, 0, count, count, c_.outputs, 1};
    pack::plan_groups(kernels, groups + first, &dy_rows_);
    pack::Group* const x_groups = groups + plan_.count + first;
    x_rows_ = {plan_.x_index + first, x_groups, 0, 0, 0, count, count, c_.inputs, 1};
    // Groups are of channels that rise; with a multiplier x's repeat.
    if (c_.multiplier == 1) pack::plan_groups(kernels, x_groups, &x_rows_);
  }

  // The chunk's channels of a unit's part of a tensor, `size` of its positions.
  Image pack(const Image& image, const Unit& unit, const int64_t* size, const pack::RowPlan& rows,
             char* tile) const noexcept {
    const pack::Kernels& kernels = pack::best_kernels(c_.dtype);
    const auto copy = kernels.pack_rows && rows.group_count > 0;
    char* targets[kPackedRows];
    const char* sources[kPackedRows];
    const int64_t position = plan_.pitch * plan_.element;
    char* to = tile;
    for (int64_t line = 0; line < unit.samples * size[0]; ++line) {
      const char* from =
          image.data + (line / size[0] * image.batch + line % size[0] * image.row) * plan_.element;
      for (int64_t done = 0; done < size[1]; done += kPackedRows) {
        const int64_t n = std::min(kPackedRows, size[1] - done);
        for (int64_t k = 0; k < n; ++k, to += position) {
          targets[k] = to;
          sources[k] = from + (done + k) * image.column * plan_.element;
        }
        if (copy) {
          kernels.pack_rows(nullptr, targets, sources, n, 0, rows);
        } else {
          kernels.copy_rows(targets, sources, n, 0, rows);
        }
      }
    }
    return {tile,
            size[0] * size[1] * plan_.pitch,
            size[1] * plan_.pitch,
            plan_.pitch,
            {tile, to + pack::kMaxSpill * plan_.element}};
  }

  const LanesPlan& plan_;
  const Convolution& c_;
  int64_t block_;
  int64_t first_;  // of the vectors
  int64_t last_;
  char* sums_;
  char* x_tile_;
  char* dy_tile_;
  pack::RowPlan dy_rows_{};
  pack::RowPlan x_rows_{};
  int64_t pending_ = 0;
};

// Positions of x that `out` of dy's meet, at most.
int64_t extent(const Axis& axis, int64_t out) noexcept {
  return std::min((out - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1, axis.in);
}

}  // namespace

bool LanesPlan::suits(const Convolution& c) noexcept {
  return c.dy.channel == 1 && c.x.channel == 1 && c.inputs > 1;
}

bool LanesPlan::prepare(const Convolution& c, int64_t width) noexcept {
  start(c, width);
  kernels = &best_walks(c.dtype);
  along = Along::of(c.axis[1]);
  tall = TapChunks::of(c.axis[0], kMaxAcross);
  wide = TapChunks::of(c.axis[1], along.taps);
  lanes = kernels->lanes;
  packed = c.multiplier > 1 || (element == 2 && 2 * width < c.outputs);
  by_channel = !packed;
  vectors = divide_up(std::max<int64_t>(packed ? width : c.outputs, 1), lanes);
  active_count = vectors;
  chunk = divide_up(vectors, divide_up(vectors * lanes, kChunkChannels));
  chunks = divide_up(vectors, chunk);
  pitch = odd_lines(chunk * lanes * element) / element;

  const int64_t position = packed ? pitch * element : lanes * element;
  const int64_t room = packed ? kTileBytes : kUnitBytes;
  band[1] = Cut::of(c.axis[1].out, kMaxWalk);
  const double row = static_cast<double>(extent(c.axis[1], band[1].part) + band[1].part) *
                     static_cast<double>(position);
  const int64_t fit = static_cast<int64_t>(static_cast<double>(room) / row);
  const int64_t reach = extent(c.axis[0], 1);
  band[0] = Cut::of(c.axis[0].out,
                    std::max<int64_t>((fit - reach) / std::max<int64_t>(c.axis[0].stride, 1), 2));
  samples = 1;
  if (band[0].parts * band[1].parts == 1) {
    const int64_t rows = std::max(extent(c.axis[0], band[0].part), band[0].part);
    samples = std::clamp<int64_t>(
        std::min(fit / std::max<int64_t>(rows, 1), kMaxWalk / band[1].part), 1, c.batch);
  }
  units = divide_up(c.batch, samples) * band[0].parts * band[1].parts;

  tile_bytes = round_up(sums() * lanes * scalar, kCacheLine);
  x_bytes = 0;
  if (packed) {
    const double x_positions = static_cast<double>(samples) *
                               static_cast<double>(extent(c.axis[0], band[0].part)) *
                               static_cast<double>(extent(c.axis[1], band[1].part));
    const double dy_positions = static_cast<double>(samples * band[0].part * band[1].part);
    if ((x_positions + dy_positions) * static_cast<double>(position) > kMaxTileBytes) return false;
    const int64_t spill = pack::kMaxSpill * element;
    x_bytes = round_up(static_cast<int64_t>(x_positions) * position + spill, kCacheLine);
    tile_bytes +=
        x_bytes + round_up(static_cast<int64_t>(dy_positions) * position + spill, kCacheLine);
  }

  // Of positions of dy, for which as many of x are read and as many partial sums written.
  const double read = 2.0 * static_cast<double>(c.batch * c.axis[0].out * c.axis[1].out) *
                      static_cast<double>(c.outputs * element);
  const double partial = static_cast<double>(vectors * lanes * sums()) * sizeof(double);
  const auto worth = static_cast<int64_t>(std::min(read / (partial * kBytesPerPartial), 64.0));
  blocks = std::max<int64_t>(
      1, std::min({kMaxTasks / chunks, units, worth, kScratchBytes / tile_bytes}));
  tasks = blocks * chunks;
  return true;
}

void LanesPlan::adopt_count(int64_t active) noexcept {
  count = active;
  if (packed) active_count = vectors = divide_up(active, lanes);
}

int64_t LanesPlan::lists_bytes() const noexcept {
  const int64_t numbers = round_up((packed ? count : vectors) * sizeof(int32_t), 8);
  const int64_t all_groups = packed ? 2 * blocks * count * sizeof(pack::Group) : 0;
  return numbers + all_groups;
}

void LanesPlan::place_lists(char* memory) noexcept {
  active_vectors = x_index = reinterpret_cast<int32_t*>(memory);
  if (packed) {
    groups = reinterpret_cast<pack::Group*>(memory + round_up(count * sizeof(int32_t), 8));
    for (int64_t i = 0; i < count; ++i) {
      x_index[i] = static_cast<int32_t>(index[i] / convolution->multiplier);
    }
  } else {
    active_count = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < count; ++i) {
      if (index[i] / lanes == last) continue;
      last = index[i] / lanes;
      active_vectors[active_count++] = static_cast<int32_t>(last);
    }
  }
  chunks = divide_up(active_count, chunk);
  tasks = blocks * chunks;
}

void LanesPlan::run(int64_t task, char* tile) const noexcept { Task(*this, task, tile).run(); }

}  // namespace neq::depthwise
