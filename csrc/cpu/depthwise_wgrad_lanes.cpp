// Vectors of neighbouring channels, and walks along the rows of planes
// (depthwise_wgrad_lanes_walk.h): all lanes of a vector work, active or not, for where it lies in
// memory it is read as a whole anyhow. Only where few of many 16-bit channels are active, and a
// line of memory has more of them than are walked at once, or maps are small and walks with them,
// are they packed first, a unit at a time (pack_channels).
#include "depthwise_wgrad_lanes.h"

#include <algorithm>
#include <cstring>

#include "cpu/pack_channels_plan.h"

namespace neq::depthwise {
namespace {

constexpr int64_t kPackedRows = 32;

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
        task_(task),
        block_(task / plan.chunks),
        first_(task % plan.chunks * plan.chunk),
        last_(std::min(first_ + plan.chunk, plan.active_count)),
        sums_(tile),
        x_tile_(tile + round_up(plan.chunk * plan.sums() * plan.lanes * plan.scalar, kCacheLine)),
        dy_tile_(x_tile_ + plan.x_bytes) {}

  void run() noexcept {
    const int64_t sums = plan_.sums() * plan_.lanes;
    std::memset(sums_, 0, (last_ - first_) * sums * plan_.scalar);
    for (int64_t k = first_; k < last_; ++k) std::fill_n(partial(k), sums, 0.0);
    if (plan_.packed) plan_rows();
    const int64_t begin = block_start(block_, plan_.blocks, plan_.units);
    const int64_t end = block_start(block_ + 1, plan_.blocks, plan_.units);
    for (int64_t unit = begin; unit < end; ++unit) {
      sum_unit(unit_of(unit), unit + 1 < end ? Next{unit_of(unit + 1), first_} : after());
    }
    add();
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

  // What is read after a unit: another one, from this vector on.
  struct Next {
    Unit unit;
    int64_t first;
  };

  // What the next task starts with, which most often the same thread runs.
  Next after() const noexcept {
    const int64_t task = std::min(task_ + 1, plan_.tasks - 1);
    const int64_t unit = block_start(task / plan_.chunks, plan_.blocks, plan_.units);
    return {unit_of(unit), task % plan_.chunks * plan_.chunk};
  }

  double* partial(int64_t k) const noexcept {
    return plan_.partial_of(block_, plan_.packed ? k : plan_.active_vectors[k]);
  }

  // Where a unit's positions start, in elements.
  int64_t dy_of(const Unit& unit) const noexcept { return place(c_.dy, unit.sample, unit.origin); }
  int64_t x_of(const Unit& unit) const noexcept { return place(c_.x, unit.sample, unit.from); }

  static int64_t place(const Strides& strides, int64_t sample, const int64_t* origin) noexcept {
    return sample * strides.batch + origin[0] * strides.axis[0] + origin[1] * strides.axis[1];
  }

  void sum_unit(const Unit& unit, const Next& next) noexcept {
    const int64_t positions = unit.samples * unit.out[0] * unit.out[1];
    if (pending_ + positions > kMaxWalk) add();
    pending_ += positions;
    Image dy{plan_.dy + dy_of(unit) * plan_.element, c_.dy.batch, c_.dy.axis[0], c_.dy.axis[1],
             plan_.dy_memory};
    Image x{plan_.x + x_of(unit) * plan_.element, c_.x.batch, c_.x.axis[0], c_.x.axis[1],
            plan_.x_memory};
    if (plan_.packed) {
      dy = pack(dy, unit, unit.out, dy_rows_, dy_tile_);
      x = pack(x, unit, unit.in, x_rows_, x_tile_);
    }
    const int64_t chunks = plan_.tall.chunks * plan_.wide.chunks;
    Taps taps = taps_of(0);
    LanesWalk walk = walk_of(unit, dy, x, taps);
    for (int64_t k = first_, beside = 1; k < last_; k += beside) {
      beside = std::min(plan_.kernels->beside, last_ - k);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (chunks > 1) {
          taps = taps_of(chunk);
          walk = walk_of(unit, dy, x, taps);
        }
        sum_vectors(walk, k, beside, taps, unit, next);
      }
    }
  }

  // Of a chunk of the taps, the first row and column. The first chunk also sees to the bias, and to
  // what is read next.
  struct Taps {
    int64_t r;
    int64_t s;
    int64_t across;
    int64_t along;
    bool first;
  };

  Taps taps_of(int64_t chunk) const noexcept {
    const int64_t down = chunk / plan_.wide.chunks;
    const int64_t right = chunk % plan_.wide.chunks;
    const int64_t r = plan_.tall.start(down);
    const int64_t s = plan_.wide.start(right);
    return {r, s, plan_.tall.start(down + 1) - r, plan_.wide.start(right + 1) - s, chunk == 0};
  }

  // What is the same for all vectors; dy and x are those of channel 0.
  LanesWalk walk_of(const Unit& unit, const Image& dy, const Image& x,
                    const Taps& taps) const noexcept {
    const Axis& axis = c_.axis[0];
    const Meeting columns =
        plan_.along.meeting(c_.axis[1], unit.origin[1], unit.out[1], taps.s, taps.along);
    const int64_t left = columns.count > 0 ? columns.first - unit.from[1] : 0;
    LanesWalk walk{};
    walk.dy = dy.data;
    walk.x = x.data + left * x.column * plan_.element;
    walk.samples = unit.samples;
    walk.dy_batch = dy.batch;
    walk.x_batch = x.batch;
    walk.lines = unit.out[0];
    walk.dy_line = dy.row;
    walk.top = unit.origin[0] * axis.stride + taps.r * axis.dilation - axis.padding - unit.from[0];
    walk.down = axis.stride;
    walk.dilation = axis.dilation;
    walk.rows = unit.in[0];
    walk.x_row = x.row;
    walk.steps = unit.out[1];
    walk.dy_step = dy.column;
    walk.begin = columns.begin;
    walk.count = columns.count;
    walk.x_step = plan_.along.step * x.column;
    walk.sums_across = c_.axis[1].kernel * plan_.lanes;
    walk.sums_along = plan_.lanes;
    walk.bias = taps.first ? c_.taps() * plan_.lanes : 0;
    walk.dy_memory = dy.memory;
    walk.x_memory = x.memory;
    return walk;
  }

  // The vectors from the `k`th on, side by side.
  void sum_vectors(LanesWalk walk, int64_t k, int64_t beside, const Taps& taps, const Unit& unit,
                   const Next& next) noexcept {
    const int64_t tap = (taps.r * c_.axis[1].kernel + taps.s) * plan_.lanes * plan_.scalar;
    const int64_t channels = plan_.packed ? plan_.count - first_ * plan_.lanes : c_.outputs;
    walk.dy += channel_of(k) * plan_.element;
    walk.x += channel_of(k) * plan_.element;
    walk.beside = channel_of(k + beside - 1) - channel_of(k);
    for (int64_t v = 0; v < beside; ++v) {
      walk.sums[v] = sums_of(k + v) + tap;
      walk.lanes[v] = {0, std::min(plan_.lanes, channels - channel_of(k + v))};
      walk.dy_ahead[v] = walk.x_ahead[v] = v * walk.beside;
    }
    if (taps.first && !plan_.packed) look_ahead(&walk, k, beside, unit, next);
    const int64_t stride = taps.along > 1 ? plan_.along.stride : 1;
    plan_.kernels->loop(taps.across, taps.along, stride, beside)(walk);
  }

  // The next vectors of the same unit are fetched, or of what comes after it. Above those rows of x
  // that a unit has for itself, the cache still knows those it shares with the one before.
  void look_ahead(LanesWalk* walk, int64_t k, int64_t beside, const Unit& unit,
                  const Next& next) const noexcept {
    for (int64_t v = 0; v < beside; ++v) {
      const bool here = k + beside + v < last_;
      const Unit& then = here ? unit : next.unit;
      const int64_t vector =
          here ? k + beside + v : std::min(next.first + v, plan_.active_count - 1);
      const int64_t distance = channel_of(vector) - channel_of(k);
      const int64_t shared = std::max<int64_t>(then.in[0] - then.out[0] * c_.axis[0].stride, 0);
      walk->dy_ahead[v] = distance + dy_of(then) - dy_of(unit);
      walk->x_ahead[v] = distance + x_of(then) - x_of(unit) + (shared - walk->top) * walk->x_row;
    }
  }

  // Where the `k`th vector starts, in the tensor or in the tile.
  int64_t channel_of(int64_t k) const noexcept {
    return (plan_.packed ? k - first_ : plan_.active_vectors[k]) * plan_.lanes;
  }

  char* sums_of(int64_t k) const noexcept {
    return sums_ + (k - first_) * plan_.sums() * plan_.lanes * plan_.scalar;
  }

  void add() noexcept {
    for (int64_t k = first_; k < last_; ++k) {
      plan_.kernels->add_each(partial(k), sums_of(k), plan_.sums());
    }
    pending_ = 0;
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
  int64_t task_;
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

}  // namespace

void LanesPlan::run(int64_t task, char* tile) const noexcept { Task(*this, task, tile).run(); }

}  // namespace neq::depthwise
