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
  Task(const Call& call, int64_t task) noexcept
      : call_(call), c_(call.convolution), room_(call, task) {}

  void run(int64_t begin, int64_t end) noexcept {
    for_parts(call_, begin, end, [this](const Part& part, bool other_channels) {
      if (other_channels) pack(part);
      for_blocks(call_, part, [&](const Block& block) { compute(block, part); });
    });
  }

 private:
  int64_t rows() const noexcept { return call_.kernels->planes.rows; }

  // The panels of each phase, those of all channels behind each other.
  void pack(const Part& part) const noexcept {
    const int64_t channels = round_up(part.last - part.first, rows());
    for (int64_t i = 0; i < call_.count; ++i) {
      const char* const source =
          call_.weight +
          (call_.index[i] * c_.dw.batch + part.first * c_.dw.channel) * call_.element;
      int64_t tap = 0;
      for (int64_t phase = 0; phase < call_.phases(); ++phase) {
        const int64_t taps = call_.tall(phase).taps * call_.wide(phase).taps;
        const Weights weights = {source,        part.last - part.first,
                                 c_.dw.channel, call_.weight_offsets + tap,
                                 taps,          call_.weight_end};
        char* const panels = room_.weights + channels * call_.count * tap * call_.scalar;
        call_.kernels->pack_rows(panels, call_.count * taps, i * taps, weights);
        tap += taps;
      }
    }
  }

  // What a product is taken of: panels of weights and of columns, and how long it is.
  struct Product {
    const char* weights;
    const char* columns;
    int64_t length;
  };

  void compute(const Block& block, const Part& part) noexcept {
    const bool gaps = call_.side[0].gaps || (call_.side[1].gaps && !call_.paired);
    if (gaps) block.clear(part.first, part.last, !call_.paired);
    if (!call_.in_place) stage(block);
    const Side& wide = call_.side[1];
    const int64_t channels = round_up(part.last - part.first, rows());
    int64_t tap = 0;
    char* columns = room_.columns;
    for (int64_t a = 0; a < call_.side[0].phases; ++a) {
      Product products[2] = {};
      for (int64_t b = 0; b < wide.phases; ++b) {
        const Phase& tall = call_.side[0].phase[a];
        const int64_t taps = tall.taps * wide.phase[b].taps;
        if (find_lines(block, tall, wide.phase[b])) {
          panels_.length = call_.count * taps;
          unfold(columns, tap, taps);
          Product& product = products[call_.paired ? wide.phase[b].place : 0];
          product = {room_.weights + channels * call_.count * tap * call_.scalar, columns,
                     panels_.length};
          if (!call_.paired) multiply(products, part);
          columns += panels_.vectors * call_.kernels->lanes * panels_.length * call_.scalar;
        }
        tap += taps;
      }
      // Both phases of a row have as many positions.
      if (call_.paired && positions_ > 0) multiply(products, part);
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
    line_count_ = run_count_ = positions_ = 0;
    step_ = c_.x.axis[1] * c_.axis[1].stride;
    int64_t at = 0;
    const int64_t length = block.steps(wide);
    if (length <= 0) return false;
    for (const Slab& slab : block) {
      for (int64_t row = 0; row < slab.rows(tall); ++row, at += length) {
        add_line(call_.in_place ? slab.sample * c_.dy.batch + (slab.begin + row) * c_.dy.axis[0] +
                                      block.first_step()
                                : (slab.at + row) * call_.pitch,
                 length);
        const int64_t target = block.target(slab, row, tall, wide);
        add_run(at, call_.paired ? target - wide.place : target, length);
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

  void unfold(char* columns, int64_t tap, int64_t taps) const noexcept {
    for (int64_t i = 0; i < call_.count; ++i) {
      const char* const source =
          call_.in_place ? call_.dy + call_.index[i] * c_.dy.channel * call_.element : plane(i);
      call_.kernels->unfold(columns, panels_, i * taps, source, lines_, line_count_,
                            call_.staged_offsets + tap, taps);
    }
  }

  // Vectors of positions, and where they go.
  struct Target {
    int64_t first;
    int64_t vectors;
    bool straight;
    int64_t at;  // in dx, if straight
    int64_t segment_count;
    Segment segments[kMostUnits];
  };

  void multiply(const Product* products, const Part& part) const noexcept {
    int64_t run = 0;
    for (int64_t n = 0; n < panels_.panels; ++n) {
      Target target;
      const int64_t vector = block_start(n, panels_.panels, panels_.vectors);
      target.vectors = block_start(n + 1, panels_.panels, panels_.vectors) - vector;
      target.first = vector * call_.kernels->lanes;
      const int64_t all = target.vectors * call_.kernels->lanes;
      const int64_t count = std::min(all, positions_ - target.first);
      while (runs_[run].from + runs_[run].count <= target.first) ++run;
      target.straight = call_.element == call_.scalar && step_ == 1 && count == all &&
                        runs_[run].from + runs_[run].count >= target.first + count;
      target.at = runs_[run].to + target.first - runs_[run].from;
      if (!target.straight) target.segment_count = cut(run, target.first, count, target.segments);
      for (int64_t channel = part.first; channel < part.last; channel += rows()) {
        multiply_rows(products, target, channel, part);
      }
    }
  }

  void multiply_rows(const Product* products, const Target& target, int64_t channel,
                     const Part& part) const noexcept {
    const Kernels& kernels = *call_.kernels;
    const int64_t row_count = std::min(rows(), part.last - channel);
    const int64_t pitch = target.vectors * kernels.lanes;
    char* const tiles[] = {room_.tile, room_.tile + rows() * pitch * call_.scalar};
    void* targets[kMostRows];
    for (int64_t r = 0; r < row_count; ++r) {
      targets[r] = call_.dx + (channel + r) * c_.x.channel * call_.element;
    }
    for (int64_t k = 0; k < (call_.paired ? 2 : 1); ++k) {
      const Product& product = products[k];
      void* sums[kMostRows];
      for (int64_t r = 0; r < row_count; ++r) {
        sums[r] = target.straight ? static_cast<char*>(targets[r]) + target.at * call_.element
                                  : tiles[k] + r * pitch * call_.scalar;
      }
      kernels.multiply_panel(
          sums, product.weights + (channel - part.first) * product.length * call_.scalar, row_count,
          target.vectors, product.length,
          product.columns + target.first * product.length * call_.scalar);
    }
    if (target.straight) return;
    if (call_.paired) {
      const void* const both[] = {tiles[0], tiles[1]};
      kernels.interleave(targets, row_count, both, pitch, target.segments, target.segment_count);
    } else {
      kernels.store(targets, row_count, step_, tiles[0], pitch, target.segments,
                    target.segment_count);
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

void run_planes(const Call& call, int64_t begin, int64_t end) { Task(call, begin).run(begin, end); }

}  // namespace neq::dgrad
