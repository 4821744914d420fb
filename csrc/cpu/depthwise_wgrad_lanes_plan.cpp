// How the work of the lanes is cut (depthwise_wgrad_lanes.h).
#include <algorithm>

#include "depthwise_wgrad_lanes.h"

namespace neq::depthwise {
namespace {

constexpr int64_t kTileBytes = 96 << 10;
constexpr double kMaxTileBytes = 1 << 28;
constexpr int64_t kChunkChannels = 256;
// Of small maps one walk takes several samples, with as many positions of dy, which is enough for
// the time that sums take to come and go. Of dy and x it takes at most so many: what it fetches
// must be in the cache still when its turn comes.
constexpr int64_t kWalkSteps = 64;
constexpr int64_t kWalkPositions = 512;
// Bytes of the tensors for each byte of partial sums, at the least.
constexpr int64_t kBytesPerPartial = 64;

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
  kernels = &best_lanes(c.dtype);
  along = Along::of(c.axis[1]);
  tall = TapChunks::of(c.axis[0], kMaxAcross);
  wide = TapChunks::of(c.axis[1], along.taps);
  lanes = kernels->lanes;
  const bool few = element == 2 && 2 * width < c.outputs;
  const bool whole_lines = lanes * kernels->beside * element >= kCacheLine;
  const bool small = c.axis[0].out * c.axis[1].out <= kWalkSteps;
  packed = c.multiplier > 1 || (few && (small || !whole_lines));
  by_channel = !packed;
  vectors = divide_up(std::max<int64_t>(packed ? width : c.outputs, 1), lanes);
  active_count = vectors;
  chunk = round_up(divide_up(vectors, divide_up(vectors * lanes, kChunkChannels)), kernels->beside);
  chunks = divide_up(vectors, chunk);
  pitch = odd_lines(chunk * lanes * element) / element;

  const int64_t position = pitch * element;
  band[1] = Cut::of(c.axis[1].out, kMaxWalk);
  const int64_t columns = extent(c.axis[1], band[1].part);
  const double row = static_cast<double>(columns + band[1].part) * static_cast<double>(position);
  const int64_t fit = static_cast<int64_t>(static_cast<double>(kTileBytes) / row);
  const int64_t down = std::max<int64_t>(std::min(c.axis[0].stride, c.axis[0].in), 1);
  const double walked =
      static_cast<double>(band[1].part) + static_cast<double>(columns) * static_cast<double>(down);
  const int64_t rows_fit =
      packed ? (fit - extent(c.axis[0], 1)) / down : static_cast<int64_t>(kWalkPositions / walked);
  const int64_t most = std::clamp<int64_t>(rows_fit, 1, kMaxWalk / band[1].part);
  band[0] = Cut::of(c.axis[0].out, most);
  samples = 1;
  if (band[0].parts * band[1].parts == 1) {
    const int64_t rows = extent(c.axis[0], band[0].part);
    const int64_t plane = band[0].part * band[1].part;
    const double both =
        static_cast<double>(plane) + static_cast<double>(rows) * static_cast<double>(columns);
    const int64_t enough =
        packed ? std::min(kMaxWalk / plane, fit / std::max<int64_t>({rows, band[0].part, 1}))
               : std::min(kWalkSteps / plane, static_cast<int64_t>(kWalkPositions / both));
    samples = std::clamp<int64_t>(enough, 1, c.batch);
  }
  units = divide_up(c.batch, samples) * band[0].parts * band[1].parts;

  tile_bytes = round_up(chunk * sums() * lanes * scalar, kCacheLine);
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
    // Half a line of memory is not left to others: it takes as long to read as both.
    const int64_t halves = lanes * element < kCacheLine ? kernels->beside : 1;
    for (int64_t i = 0, end = 0; i < count; ++i) {
      if (index[i] < end * lanes) continue;
      int64_t vector = index[i] / (halves * lanes) * halves;
      for (end = std::min(vector + halves, vectors); vector < end; ++vector) {
        active_vectors[active_count++] = static_cast<int32_t>(vector);
      }
    }
  }
  chunks = divide_up(active_count, chunk);
  tasks = blocks * chunks;
}

}  // namespace neq::depthwise
