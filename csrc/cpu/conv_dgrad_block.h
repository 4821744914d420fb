// Some rows of dx, taken at once, and the outputs they meet.
#pragma once

#include <algorithm>
#include <cstring>

#include "conv_dgrad_plan.h"
#include "tensor.h"

namespace neq::dgrad {

// Rows of one sample, as steps of the phases.
struct Slab {
  int64_t sample;
  int64_t begin;
  int64_t end;
  int64_t at;  // the staged row of the first output they meet

  int64_t rows(const Phase& phase) const noexcept { return std::min(end, phase.steps) - begin; }
};

class Block {
 public:
  Block(const Call& call, int64_t first, int64_t last) noexcept : call_(call) {
    const Side& tall = call.side[0];
    const int64_t part = first % call.parts_of_row;
    begin_ = block_start(part, call.parts_of_row, call.side[1].steps);
    end_ = block_start(part + 1, call.parts_of_row, call.side[1].steps);
    int64_t at = 0;
    // Where rows are cut into parts, there is one unit.
    const int64_t end = divide_up(last, call.parts_of_row);
    for (int64_t row = first / call.parts_of_row; row < end;) {
      const int64_t step = row % tall.steps;
      const int64_t rows = std::min(tall.steps - step, end - row);
      slabs_[count_++] = {row / tall.steps, step, step + rows, at};
      at += rows + tall.reach;
      row += rows;
    }
  }

  const Slab* begin() const noexcept { return slabs_; }
  const Slab* end() const noexcept { return slabs_ + count_; }
  // Steps along a row, of all phases and of one.
  int64_t first_step() const noexcept { return begin_; }
  int64_t steps() const noexcept { return end_ - begin_; }
  int64_t steps(const Phase& phase) const noexcept { return std::min(end_, phase.steps) - begin_; }

  // Elements of dx, in its first channel, to the first step of a slab's row of this phase.
  int64_t target(const Slab& slab, int64_t row, const Phase& tall,
                 const Phase& wide) const noexcept {
    const Convolution& c = call_.convolution;
    return slab.sample * c.x.batch +
           (tall.place + (slab.begin + row) * c.axis[0].stride) * c.x.axis[0] +
           (wide.place + begin_ * c.axis[1].stride) * c.x.axis[1];
  }

  // Of channels [first, last), all that lies in these rows, whatever its phase; or of those rows
  // alone that are of none.
  void clear(int64_t first, int64_t last, bool all) const noexcept {
    const Convolution& c = call_.convolution;
    const int64_t v = begin_ * c.axis[1].stride;
    const int64_t wide = std::min(end_ * c.axis[1].stride, c.axis[1].in) - v;
    for (const Slab& slab : *this) {
      const int64_t bottom = std::min(slab.end * c.axis[0].stride, c.axis[0].in);
      for (int64_t u = slab.begin * c.axis[0].stride; u < bottom; ++u) {
        if (!all && met(u % c.axis[0].stride)) continue;
        const int64_t row = slab.sample * c.x.batch + u * c.x.axis[0] + v * c.x.axis[1];
        if (c.x.axis[1] == 1) {
          for (int64_t channel = first; channel < last; ++channel) {
            zero(row + channel * c.x.channel, wide, 1);
          }
        } else {
          for (int64_t k = 0; k < wide; ++k) {
            zero(row + k * c.x.axis[1] + first * c.x.channel, last - first, c.x.channel);
          }
        }
      }
    }
  }

 private:
  bool met(int64_t place) const noexcept {
    const Side& tall = call_.side[0];
    return std::any_of(tall.phase, tall.phase + tall.phases,
                       [=](const Phase& phase) { return phase.place == place; });
  }

  void zero(int64_t at, int64_t count, int64_t step) const noexcept {
    char* const to = call_.dx + at * call_.element;
    if (step == 1) {
      std::memset(to, 0, count * call_.element);
    } else {
      for (int64_t k = 0; k < count; ++k) {
        std::memset(to + k * step * call_.element, 0, call_.element);
      }
    }
  }

  const Call& call_;
  Slab slabs_[kMostUnits];
  int64_t count_ = 0;
  int64_t begin_;
  int64_t end_;
};

// A part of dx: rows of units, and channels.
struct Part {
  int64_t units_begin;
  int64_t units_end;
  int64_t first;
  int64_t last;
};

// Calls body with parts, as large as may be, that make up tasks [begin, end), and whether a part's
// channels are not those of the one before.
template <class Body>
void for_parts(const Call& call, int64_t begin, int64_t end, Body body) noexcept {
  const int64_t across = call.channel_parts;
  const auto unit = [&](int64_t part) { return block_start(part, call.unit_parts, call.units); };
  const auto channel = [&](int64_t part) {
    const int64_t units = block_start(part, across, call.channel_units);
    return std::min(units * call.channels_of_unit, call.convolution.inputs);
  };
  Part before = {0, 0, 0, 0};
  for (int64_t task = begin; task < end;) {
    const int64_t row = task / across;
    const int64_t column = task % across;
    // Whole rows of tasks together, or a part of one.
    const bool whole = column == 0 && end - task >= across;
    const int64_t rows = whole ? (end - task) / across : 1;
    const int64_t columns = whole ? across : std::min(across - column, end - task);
    const Part part = {unit(row), unit(row + rows), channel(column), channel(column + columns)};
    body(part, part.first != before.first || part.last != before.last);
    before = part;
    task += rows * columns;
  }
}

// The blocks of a part.
template <class Body>
void for_blocks(const Call& call, const Part& part, Body body) noexcept {
  const int64_t units = part.units_end - part.units_begin;
  const int64_t blocks = divide_up(units, call.units_at_once);
  for (int64_t k = 0; k < blocks; ++k) {
    body(Block(call, part.units_begin + block_start(k, blocks, units),
               part.units_begin + block_start(k + 1, blocks, units)));
  }
}

// The memory of tasks from `task` on: weights of all of them, and the rest of the first.
struct Room {
  char* weights;
  char* columns;
  char* staged;
  char* tile;

  Room(const Call& call, int64_t task) noexcept
      : weights(call.panels + task * call.weights * call.scalar),
        columns(call.tiles + task * call.tile_bytes),
        staged(columns + round_up(call.columns * call.scalar, kCacheLine)),
        tile(staged + round_up(call.staged * call.scalar, kCacheLine)) {}
};

}  // namespace neq::dgrad
