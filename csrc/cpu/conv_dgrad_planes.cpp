// conv_dgrad where vectors are positions of dx.
//
// The active channels of dy are staged as planes with the zeros of the borders around. For each
// phase they are unfolded, a row for each channel and weight, and dx is a product: of panels of
// weights, a few channels of dx in each, with panels of a few vectors of positions
// (conv_dgrad_loops.h). Sums go straight to where dx has so many neighbours, or by way of a tile.
#include <algorithm>
#include <cstring>

#include "conv_dgrad_block.h"

namespace neq::dgrad {
namespace {

class Task {
 public:
  Task(const Call& call, char* memory) noexcept
      : call_(call), c_(call.convolution), room_(call, memory) {}

  void run(int64_t begin, int64_t end) noexcept {
    Part before = {0, 0, 0, 0};
    for (int64_t task = begin; task < end; ++task) {
      const Part part = Part::of(call_, task);
      if (part.first != before.first || part.last != before.last) pack(part);
      before = part;
      const int64_t units = part.units_end - part.units_begin;
      const int64_t steps = divide_up(units, call_.units_at_once);
      for (int64_t step = 0; step < steps; ++step) {
        const Block block(call_, part.units_begin + block_start(step, steps, units),
                          part.units_begin + block_start(step + 1, steps, units));
        compute(block, part);
      }
    }
  }

 private:
  int64_t rows() const noexcept { return call_.kernels->planes.rows; }
  const Phase& tall(int64_t phase) const noexcept {
    return call_.side[0].phase[phase / call_.side[1].phases];
  }
  const Phase& wide(int64_t phase) const noexcept {
    return call_.side[1].phase[phase % call_.side[1].phases];
  }
  int64_t phases() const noexcept { return call_.side[0].phases * call_.side[1].phases; }

  // The panels of each phase, those of all channels behind each other.
  void pack(const Part& part) const noexcept {
    const int64_t channels = round_up(part.last - part.first, rows());
    for (int64_t i = 0; i < call_.count; ++i) {
      const char* const source =
          call_.weight +
          (call_.index[i] * c_.dw.batch + part.first * c_.dw.channel) * call_.element;
      int64_t tap = 0;
      for (int64_t phase = 0; phase < phases(); ++phase) {
        const int64_t taps = tall(phase).taps * wide(phase).taps;
        const Weights weights = {source,        part.last - part.first,
                                 c_.dw.channel, call_.weight_offsets + tap,
                                 taps,          call_.weight_end};
        char* const panels = room_.weights + channels * call_.count * tap * call_.scalar;
        call_.kernels->pack_rows(panels, call_.count * taps, i * taps, weights);
        tap += taps;
      }
    }
  }

  void compute(const Block& block, const Part& part) noexcept {
    if (call_.side[0].gaps || call_.side[1].gaps) block.clear(part.first, part.last);
    stage(block);
    const int64_t channels = round_up(part.last - part.first, rows());
    int64_t tap = 0;
    for (int64_t phase = 0; phase < phases(); ++phase) {
      const int64_t taps = tall(phase).taps * wide(phase).taps;
      if (find_lines(block, tall(phase), wide(phase))) {
        unfold(tap, taps);
        multiply(room_.weights + channels * call_.count * tap * call_.scalar, call_.count * taps,
                 part);
      }
      tap += taps;
    }
  }

  char* plane(int64_t i) const noexcept { return room_.staged + i * call_.plane * call_.scalar; }

  void zero(char* tile, int64_t from, int64_t to) const noexcept {
    if (to > from) std::memset(tile + from * call_.scalar, 0, (to - from) * call_.scalar);
  }

  // Planes of all active channels. What is copied goes on with zeros to the next row's first.
  void stage(const Block& block) const noexcept {
    const Side& wide = call_.side[1];
    const int64_t first = block.first_step() + wide.lowest;
    const int64_t length = block.steps() + wide.reach;
    const int64_t q = std::clamp<int64_t>(first, 0, c_.axis[1].out);
    const int64_t last = std::clamp<int64_t>(first + length, 0, c_.axis[1].out);
    for (int64_t i = 0; i < call_.count; ++i) {
      for (const Slab& slab : block) stage_slab(plane(i), slab, call_.index[i], q, last, first);
    }
  }

  void stage_slab(char* plane, const Slab& slab, int64_t channel, int64_t q, int64_t last,
                  int64_t first) const noexcept {
    const Side& tall = call_.side[0];
    const int64_t pitch = call_.pitch;
    const int64_t above = slab.begin + tall.lowest;
    const int64_t below = slab.end + tall.lowest + tall.reach;
    const int64_t p = std::clamp<int64_t>(above, 0, c_.axis[0].out);
    const int64_t bottom = std::clamp<int64_t>(below, 0, c_.axis[0].out);
    char* const tile = plane + slab.at * pitch * call_.scalar;
    const int64_t end = (below - above) * pitch;
    if (p >= bottom || q >= last) return zero(tile, 0, end);
    const int64_t start = (p - above) * pitch + q - first;
    zero(tile, 0, start);
    const int64_t source =
        slab.sample * c_.dy.batch + channel * c_.dy.channel + p * c_.dy.axis[0] + q * c_.dy.axis[1];
    int64_t rows = bottom - p;
    int64_t length = last - q;
    int64_t row = pitch;
    if (length == pitch && c_.dy.axis[1] == 1 && c_.dy.axis[0] == length) {
      length *= rows;  // rows lie together, here and there
      row = length;
      rows = 1;
    }
    const staging::Place place = {0, row, row - length, 0};
    const staging::Rows from = {call_.dy + source * call_.element,
                                0,
                                c_.dy.axis[0],
                                c_.dy.axis[1],
                                1,
                                rows,
                                length,
                                call_.dy_end};
    call_.staging->copy(tile + start * call_.scalar, place, from);
    zero(tile, start + (bottom - p) * pitch, end);
  }

  // Where positions of a phase lie, staged and in dx; returns whether there are any.
  bool find_lines(const Block& block, const Phase& tall, const Phase& wide) noexcept {
    line_count_ = run_count_ = 0;
    step_ = c_.x.axis[1] * c_.axis[1].stride;
    int64_t at = 0;
    const int64_t length = block.steps(wide);
    if (length <= 0) return false;
    for (const Slab& slab : block) {
      for (int64_t row = 0; row < slab.rows(tall); ++row, at += length) {
        add_line((slab.at + row) * call_.pitch, length);
        add_run(at, block.target(slab, row, tall, wide), length);
      }
    }
    const Shape& shape = call_.kernels->planes;
    const int64_t vectors = divide_up(at, call_.kernels->lanes);
    panels_ = {vectors, divide_up(vectors, shape.vectors), 0};
    positions_ = at;
    return at > 0;
  }

  void add_line(int64_t at, int64_t length) noexcept {
    Line* const last = lines_ + line_count_ - 1;
    if (line_count_ > 0 && last->at + last->count == at) {
      last->count += length;
    } else {
      lines_[line_count_++] = {at, length};
    }
  }

  void add_run(int64_t at, int64_t target, int64_t length) noexcept {
    Segment* const last = runs_ + run_count_ - 1;
    if (run_count_ > 0 && last->to + last->count * step_ == target) {
      last->count += length;
    } else {
      runs_[run_count_++] = {at, target, length};
    }
  }

  void unfold(int64_t tap, int64_t taps) noexcept {
    panels_.length = call_.count * taps;
    for (int64_t i = 0; i < call_.count; ++i) {
      call_.kernels->unfold(room_.columns, panels_, i * taps, plane(i), lines_, line_count_,
                            call_.staged_offsets + tap, taps);
    }
  }

  void multiply(const char* weights, int64_t length, const Part& part) const noexcept {
    const Kernels& kernels = *call_.kernels;
    int64_t run = 0;
    for (int64_t n = 0; n < panels_.panels; ++n) {
      const int64_t vector = block_start(n, panels_.panels, panels_.vectors);
      const int64_t vectors = block_start(n + 1, panels_.panels, panels_.vectors) - vector;
      const int64_t first = vector * kernels.lanes;
      const int64_t count = std::min(vectors * kernels.lanes, positions_ - first);
      while (runs_[run].from + runs_[run].count <= first) ++run;
      const char* const columns = room_.columns + first * length * call_.scalar;
      const bool straight = call_.element == call_.scalar && step_ == 1 &&
                            count == vectors * kernels.lanes &&
                            runs_[run].from + runs_[run].count >= first + count;
      Segment segments[kMostUnits];
      const int64_t segment_count = straight ? 0 : cut(run, first, count, segments);
      const int64_t pitch = vectors * kernels.lanes;
      for (int64_t channel = part.first; channel < part.last; channel += rows()) {
        const int64_t row_count = std::min(rows(), part.last - channel);
        void* targets[kMostRows];
        void* sums[kMostRows];
        for (int64_t r = 0; r < row_count; ++r) {
          char* const dx = call_.dx + (channel + r) * c_.x.channel * call_.element;
          targets[r] = dx;
          sums[r] = straight ? dx + (runs_[run].to + first - runs_[run].from) * call_.element
                             : room_.tile + r * pitch * call_.scalar;
        }
        const char* const panel = weights + (channel - part.first) * length * call_.scalar;
        kernels.multiply_panel(sums, panel, row_count, vectors, length, columns);
        if (!straight) {
          kernels.store(targets, row_count, step_, room_.tile, pitch, segments, segment_count);
        }
      }
    }
  }

  // What positions [first, first + count) are in dx.
  int64_t cut(int64_t run, int64_t first, int64_t count, Segment* segments) const noexcept {
    int64_t found = 0;
    for (; run < run_count_ && runs_[run].from < first + count; ++run) {
      const Segment& all = runs_[run];
      const int64_t begin = std::max(all.from, first);
      const int64_t end = std::min(all.from + all.count, first + count);
      segments[found++] = {begin - first, all.to + (begin - all.from) * step_, end - begin};
    }
    return found;
  }

  const Call& call_;
  const Convolution& c_;
  const Room room_;
  Panels panels_{};
  int64_t positions_ = 0;
  int64_t step_ = 0;
  int64_t line_count_ = 0;
  int64_t run_count_ = 0;
  Line lines_[kMostUnits];
  Segment runs_[kMostUnits];
};

}  // namespace

void run_planes(const Call& call, int64_t begin, int64_t end, char* memory) {
  Task(call, memory).run(begin, end);
}

}  // namespace neq::dgrad
