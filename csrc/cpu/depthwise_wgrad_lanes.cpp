// A band of x with its padding in zeros, the active channels of each position side by side in a
// tile, and the same of dy: for every lane on its own, tap (r, s) of dw is then
//   sum over p, q of dy[p, q] * x[p * stride + r * dilation, q * stride + s * dilation].
// Compacting is pack_channels' work. Where all channels are active, dy needs no tile.
#include "depthwise_wgrad_lanes.h"

#include <cstring>

#include "cpu/pack_channels_plan.h"

namespace neq::depthwise {
namespace {

constexpr int64_t kTileBytes = 96 << 10;
constexpr int64_t kMaxTileBytes = int64_t{1} << 28;
constexpr int64_t kChunkChannels = 256;
constexpr int64_t kMaxColumns = kMaxWalk;
// Rows up to this long are turned, where this many channels share the work.
constexpr int64_t kTurnedColumns = 16;
constexpr int64_t kFewestTurned = 8;
constexpr int64_t kTurnedChannels = 64;
constexpr int64_t kMaxTasks = 64;
constexpr int64_t kRows = 32;

// Bytes of the tensors for each byte of partial sums, at the least.
constexpr int64_t kBytesPerPartial = 64;

int64_t extent(const Axis& axis, int64_t band) noexcept {
  return (band - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
}

void cut(int64_t out, int64_t longest, int64_t* band, int64_t* bands) noexcept {
  *bands = divide_up(out, std::max<int64_t>(longest, 1));
  *band = divide_up(out, *bands);
  *bands = divide_up(out, *band);
}

// What a task knows of one tensor: where to find the channels of its chunk.
struct Source {
  const char* data;
  const char* end;
  bool compact;
  pack::RowPlan rows;
  const int64_t* offsets;
};

struct Task {
  const LanePlan& plan;
  int64_t first;  // of the lanes
  int64_t channels;
  Source dy;
  Source x;
  char* narrow;
  char* dy_tile;
  char* x_tile;
};

// `n` neighbouring positions of a tensor into a tile.
void stage_run(const Task& task, const Source& source, const char* from, int64_t step, int64_t n,
               char* target) noexcept {
  const LanePlan& plan = task.plan;
  if (plan.turned) {
    plan.staging->transpose(target, plan.pitch, from, source.offsets, task.channels, n, source.end);
    return;
  }
  if (!source.compact) {
    plan.staging->copy(target, {0, plan.pitch, 0, 0},
                       {from, 0, step, 1, 1, n, task.channels, source.end});
    return;
  }
  const bool narrow = plan.element != plan.scalar;
  const int64_t row_bytes = plan.pitch * plan.element;
  char* const packed = narrow ? task.narrow : target;
  const pack::Kernels& kernels = pack::best_kernels(plan.convolution->dtype);
  char* targets[kRows];
  const char* sources[kRows];
  for (int64_t done = 0; done < n; done += kRows) {
    const int64_t rows = std::min(kRows, n - done);
    for (int64_t r = 0; r < rows; ++r) {
      targets[r] = packed + (done + r) * row_bytes;
      sources[r] = from + (done + r) * step * plan.element;
    }
    if (kernels.pack_rows && source.rows.group_count > 0) {
      kernels.pack_rows(nullptr, targets, sources, rows, 0, source.rows);
    } else {
      kernels.copy_rows(targets, sources, rows, 0, source.rows);
    }
  }
  if (!narrow) return;
  plan.staging->copy(target, {0, plan.pitch, 0, 0},
                     {packed, 0, plan.pitch, 1, 1, n, task.channels, packed + n * row_bytes});
}

void stage_x(const Task& task, const char* sample, const int64_t* origin, char* target) noexcept {
  const LanePlan& plan = task.plan;
  const Convolution& c = *plan.convolution;
  const int64_t position = plan.pitch * plan.scalar;
  const int64_t top = origin[0] * c.axis[0].stride - c.axis[0].padding;
  const int64_t left = origin[1] * c.axis[1].stride - c.axis[1].padding;
  const int64_t columns = plan.extent[1];
  const int64_t lead = std::clamp<int64_t>(-left, 0, columns);
  const int64_t end = std::clamp(c.axis[1].in - left, lead, columns);
  for (int64_t i = 0; i < plan.extent[0]; ++i, target += columns * position) {
    const int64_t row = top + i;
    if (row < 0 || row >= c.axis[0].in || lead == end) {
      std::memset(target, 0, columns * position);
      continue;
    }
    std::memset(target, 0, lead * position);
    const char* from = sample + (row * c.x.axis[0] + (left + lead) * c.x.axis[1]) * plan.element;
    stage_run(task, task.x, from, c.x.axis[1], end - lead, target + lead * position);
    // After the run, which spills.
    std::memset(target + end * position, 0, (columns - end) * position);
  }
}

// The bands of dy that a tile takes, in its own tile or where they are.
struct Gradient {
  const char* data;
  Pitch pitch;
};

Gradient stage_dy(const Task& task, const char* sample, const int64_t* origin, int64_t rows,
                  int64_t columns, int64_t unit) noexcept {
  const LanePlan& plan = task.plan;
  const Convolution& c = *plan.convolution;
  const char* from = sample + (origin[0] * c.dy.axis[0] + origin[1] * c.dy.axis[1]) * plan.element;
  if (plan.dy_scalars == 0) return {from, {c.dy.batch, c.dy.axis[0], c.dy.axis[1]}};
  const Pitch pitch = {plan.band[0] * plan.band[1] * plan.pitch, plan.band[1] * plan.pitch,
                       plan.pitch};
  char* const target = task.dy_tile + unit * pitch.unit * plan.scalar;
  for (int64_t p = 0; p < rows; ++p) {
    stage_run(task, task.dy, from + p * c.dy.axis[0] * plan.element, c.dy.axis[1], columns,
              target + p * pitch.row * plan.scalar);
  }
  return {target, pitch};
}

// `walk` cut where its sums would grow too long.
void correlate_vector(const LanePlan& plan, double* sums, const char* dy, const char* x,
                      Walk walk) noexcept {
  const Convolution& c = *plan.convolution;
  const int64_t taps = c.taps();
  const int64_t lanes = plan.kernels->lanes;
  const int64_t chunks = divide_up(taps, kMaxTaps);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t from = block_start(chunk, chunks, taps);
    const int64_t count = block_start(chunk + 1, chunks, taps) - from;
    const void* at[kMaxTaps];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t r = (from + t) / c.axis[1].kernel * c.axis[0].dilation;
      const int64_t s = (from + t) % c.axis[1].kernel * c.axis[1].dilation;
      at[t] = x + (r * plan.extent[1] + s) * plan.pitch * plan.scalar;
    }
    plan.kernels->correlate(sums + from * lanes, chunk ? nullptr : sums + taps * lanes, dy, at,
                            count, walk);
  }
}

void correlate(const Task& task, double* partial, const Gradient& dy, const Walk& walk) noexcept {
  const LanePlan& plan = task.plan;
  const int64_t lanes = plan.kernels->lanes;
  const int64_t sums = plan.convolution->taps() + 1;
  Walk part = walk;
  const bool whole = walk.length() <= kMaxWalk;
  if (!whole) {
    part.units = 1;
    part.rows = std::max<int64_t>(1, kMaxWalk / walk.steps);
  }
  for (int64_t lane = 0; lane < task.channels; lane += lanes) {
    double* const vector = partial + (task.first + lane) * sums;
    for (int64_t unit = 0; unit < walk.units; unit += part.units) {
      for (int64_t row = 0; row < walk.rows; row += part.rows) {
        Walk here = part;
        here.rows = std::min(part.rows, walk.rows - row);
        correlate_vector(
            plan, vector, dy.data + (unit * walk.dy.unit + row * walk.dy.row + lane) * plan.scalar,
            task.x_tile + (unit * walk.x.unit + row * walk.x.row + lane) * plan.scalar, here);
      }
    }
  }
}

void sum_tile(const Task& task, double* partial, int64_t tile) noexcept {
  const LanePlan& plan = task.plan;
  const Convolution& c = *plan.convolution;
  const int64_t bands = plan.bands[0] * plan.bands[1];
  const int64_t first = tile * plan.units;
  const int64_t units = std::min(plan.units, c.batch * bands - first);
  const int64_t x_unit = plan.extent[0] * plan.extent[1] * plan.pitch;
  const int64_t band = first % bands;
  const int64_t origin[2] = {band / plan.bands[1] * plan.band[0],
                             band % plan.bands[1] * plan.band[1]};
  const int64_t rows = std::min(plan.band[0], c.axis[0].out - origin[0]);
  const int64_t columns = std::min(plan.band[1], c.axis[1].out - origin[1]);
  Gradient gradient{};
  for (int64_t u = 0; u < units; ++u) {
    const int64_t sample = (first + u) / bands;
    const Gradient here =
        stage_dy(task, task.dy.data + sample * c.dy.batch * plan.element, origin, rows, columns, u);
    if (u == 0) gradient = here;
    stage_x(task, task.x.data + sample * c.x.batch * plan.element, origin,
            task.x_tile + u * x_unit * plan.scalar);
  }
  const Walk walk = {
      units,
      rows,
      columns,
      gradient.pitch,
      {x_unit, c.axis[0].stride * plan.extent[1] * plan.pitch, c.axis[1].stride * plan.pitch}};
  correlate(task, partial, gradient, walk);
}

// Of the chunk of `count` channels from lane `first` on; tensor 0 is dy, 1 is x.
Source source_of(const LanePlan& plan, int tensor, int64_t first, int64_t count,
                 pack::Group* groups) noexcept {
  const Convolution& c = *plan.convolution;
  const bool is_x = tensor == 1;
  Source source = {
      is_x ? plan.x : plan.dy, is_x ? plan.x_end : plan.dy_end, !plan.all, {}, nullptr};
  if (plan.turned) {
    source.offsets = plan.offsets + tensor * plan.channels + first;
  } else if (plan.all) {
    source.data += first * plan.element;
  } else {
    const int64_t channels = is_x ? c.inputs : c.outputs;
    const int32_t* index = is_x ? plan.x_index : plan.index;
    source.rows = {index + first, groups + first, 0, 0, 0, count, count, channels, 1};
    // Groups are of channels that rise; with a multiplier x's repeat.
    if (!is_x || c.multiplier == 1) {
      pack::plan_groups(pack::best_kernels(c.dtype), groups + first, &source.rows);
    }
  }
  return source;
}

// Whether neighbours are a row's positions in both tensors.
bool turns(const Convolution& c) noexcept { return c.dy.axis[1] == 1 && c.x.axis[1] == 1; }

}  // namespace

bool has_lanes(const Convolution& c, int64_t width) noexcept {
  if (c.dy.channel == 1 && c.x.channel == 1 && c.inputs > 1) return true;
  return turns(c) && c.axis[1].out <= kTurnedColumns && width >= kFewestTurned;
}

bool plan_lanes(const Convolution& c, const Kernels& kernels, int64_t width,
                LanePlan* plan) noexcept {
  plan->convolution = &c;
  plan->kernels = &kernels;
  plan->staging = &staging::best_kernels(c.dtype);
  plan->count = width;
  plan->element = element_bytes(c.dtype);
  plan->scalar = c.dtype == NEQ_F64 ? 8 : 4;
  plan->turned = c.dy.channel != 1 || c.x.channel != 1;
  plan->all = !plan->turned && c.multiplier == 1 && 4 * width >= 3 * c.outputs;
  plan->channels = plan->all ? c.outputs : width;
  const int64_t lanes = kernels.lanes;
  const int64_t least = divide_up(std::max<int64_t>(plan->channels, 1),
                                  plan->turned ? kTurnedChannels : kChunkChannels);
  plan->chunk = round_up(divide_up(std::max<int64_t>(plan->channels, 1), least), lanes);
  plan->chunks = divide_up(std::max<int64_t>(plan->channels, 1), plan->chunk);
  plan->pitch = odd_lines(plan->chunk * plan->scalar) / plan->scalar;

  const int64_t position = plan->pitch * plan->scalar;
  cut(c.axis[1].out, kMaxColumns, &plan->band[1], &plan->bands[1]);
  plan->extent[1] = extent(c.axis[1], plan->band[1]);
  const double row = static_cast<double>(plan->extent[1]) * static_cast<double>(position);
  if (row > static_cast<double>(kMaxTileBytes)) return false;
  const int64_t fit = kTileBytes / (plan->extent[1] * position) - extent(c.axis[0], 1);
  cut(c.axis[0].out, std::max<int64_t>(fit / c.axis[0].stride + 1, 2), &plan->band[0],
      &plan->bands[0]);
  plan->extent[0] = extent(c.axis[0], plan->band[0]);
  if (row * static_cast<double>(plan->extent[0]) > static_cast<double>(kMaxTileBytes)) return false;

  // Several samples where one alone would not keep the sums' registers busy.
  const int64_t bands = plan->bands[0] * plan->bands[1];
  const int64_t unit = plan->extent[0] * plan->extent[1] * position;
  plan->units = 1;
  if (bands == 1) {
    const int64_t walk = plan->band[0] * plan->band[1];
    plan->units = std::clamp<int64_t>(std::min(kMaxWalk / walk, kTileBytes / unit), 1,
                                      std::max<int64_t>(c.batch, 1));
  }
  plan->tiles = divide_up(c.batch * bands, plan->units);
  const bool in_place = plan->all && plan->element == plan->scalar && c.outputs % lanes == 0;
  const int64_t spill = pack::kMaxSpill + kMaxLanes;
  plan->x_scalars = round_up(plan->units * unit / plan->scalar + spill, kMaxLanes);
  plan->dy_scalars =
      in_place
          ? 0
          : round_up(plan->units * plan->band[0] * plan->band[1] * plan->pitch + spill, kMaxLanes);
  plan->narrow_bytes =
      plan->element == plan->scalar
          ? 0
          : round_up((plan->extent[1] * plan->pitch + spill) * plan->element, kCacheLine);
  plan->tile_bytes = plan->narrow_bytes + (plan->x_scalars + plan->dy_scalars) * plan->scalar;

  // Of positions of dy, for which as many of x are read and as many partial sums written.
  const double read = 2.0 * static_cast<double>(c.batch * c.axis[0].out * c.axis[1].out) *
                      static_cast<double>(c.outputs * plan->element);
  const double partial =
      static_cast<double>(plan->chunks * plan->chunk * (c.taps() + 1)) * sizeof(double);
  const auto worth = static_cast<int64_t>(std::min(read / (partial * kBytesPerPartial), 64.0));
  plan->blocks = std::max<int64_t>(1, std::min({kMaxTasks / plan->chunks, plan->tiles, worth,
                                                kScratchBytes / plan->tile_bytes}));
  plan->tasks = plan->blocks * plan->chunks;
  return true;
}

void adopt_count(LanePlan* plan, int64_t count) noexcept {
  plan->count = count;
  if (plan->all) return;
  plan->channels = count;
  plan->chunks = divide_up(count, plan->chunk);
  plan->tasks = plan->blocks * plan->chunks;
}

void run_lanes(const LanePlan& plan, int64_t task, char* tile) noexcept {
  const Convolution& c = *plan.convolution;
  const int64_t chunk = task % plan.chunks;
  const int64_t block = task / plan.chunks;
  const int64_t first = chunk * plan.chunk;
  const int64_t count = std::min(plan.chunk, plan.channels - first);
  pack::Group* const groups = plan.groups + block * 2 * plan.channels;
  const Task here = {plan,
                     first,
                     count,
                     source_of(plan, 0, first, count, groups),
                     source_of(plan, 1, first, count, groups + plan.channels),
                     tile,
                     tile + plan.narrow_bytes + plan.x_scalars * plan.scalar,
                     tile + plan.narrow_bytes};
  const int64_t sums = c.taps() + 1;
  double* const partial = plan.partial + block * plan.chunks * plan.chunk * sums;
  std::memset(partial + first * sums, 0, plan.chunk * sums * sizeof(double));
  const int64_t end = block_start(block + 1, plan.blocks, plan.tiles);
  for (int64_t t = block_start(block, plan.blocks, plan.tiles); t < end; ++t) {
    sum_tile(here, partial, t);
  }
}

}  // namespace neq::depthwise
