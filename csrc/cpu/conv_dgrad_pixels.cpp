// conv_dgrad where the channels of dx lie side by side: they are the lanes of vectors.
//
// The active channels of dy are staged side by side, pixel by pixel, with the zeros of the borders
// around. A pixel of dx is then a sum over weights and active channels, of numbers that are staged
// a fixed number of elements from those for the pixel before, times rows of the weight. These are
// packed into panels of some vectors; a few pixels are multiplied at a time (conv_dgrad_loops.h).
#include <algorithm>
#include <cstring>

#include "conv_dgrad_block.h"

namespace neq::dgrad {
namespace {

constexpr int64_t kFirstCache = 32 << 10;

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
  Panels panels(const Part& part, int64_t taps) const noexcept {
    const int64_t vectors = divide_up(part.last - part.first, call_.kernels->lanes);
    return {vectors, divide_up(vectors, call_.kernels->pixels.vectors), call_.count * taps};
  }

  int64_t padded(const Part& part) const noexcept {
    return round_up(part.last - part.first, call_.kernels->lanes);
  }

  // The panels of each phase; in one the active channels of a weight behind each other.
  void pack(const Part& part) const noexcept {
    for (int64_t i = 0; i < call_.count; ++i) {
      const char* const source =
          call_.weight +
          (call_.index[i] * c_.dw.batch + part.first * c_.dw.channel) * call_.element;
      int64_t tap = 0;
      for (int64_t phase = 0; phase < call_.phases(); ++phase) {
        const int64_t taps = call_.tall(phase).taps * call_.wide(phase).taps;
        const dgrad::Weights weights = {source,        part.last - part.first,
                                        c_.dw.channel, call_.weight_offsets + tap,
                                        taps,          call_.weight_end};
        char* const columns = room_.weights + padded(part) * call_.count * tap * call_.scalar;
        call_.kernels->pack_columns(columns, panels(part, taps), i, call_.count, weights);
        tap += taps;
      }
    }
  }

  void compute(const Block& block, const Part& part) noexcept {
    if (call_.side[0].gaps || call_.side[1].gaps) block.clear(part.first, part.last, true);
    if (call_.phases() > 0) stage(block);
    int64_t tap = 0;
    for (int64_t phase = 0; phase < call_.phases(); ++phase) {
      multiply(block, part, phase, tap);
      tap += call_.tall(phase).taps * call_.wide(phase).taps;
    }
  }

  char* pixel(int64_t row, int64_t column) const noexcept {
    return room_.staged + (row * call_.pitch + column) * call_.count * call_.scalar;
  }

  void stage(const Block& block) const noexcept {
    const Side& tall = call_.side[0];
    const Side& wide = call_.side[1];
    const int64_t first = block.first_step() + wide.lowest;
    const int64_t length = block.steps() + wide.reach;
    const int64_t q = std::clamp<int64_t>(first, 0, c_.axis[1].out);
    const int64_t last = std::clamp<int64_t>(first + length, 0, c_.axis[1].out);
    for (const Slab& slab : block) {
      const int64_t above = slab.begin + tall.lowest;
      const int64_t below = slab.end + tall.lowest + tall.reach;
      for (int64_t p = above; p < below; ++p) {
        const int64_t row = slab.at + p - above;
        const bool outside = p < 0 || p >= c_.axis[0].out || q >= last;
        if (outside) {
          zero(row, 0, length);
          continue;
        }
        zero(row, 0, q - first);
        const int64_t at = slab.sample * c_.dy.batch + p * c_.dy.axis[0] + q * c_.dy.axis[1];
        call_.kernels->gather(pixel(row, q - first), call_.dy + at * call_.element, last - q,
                              c_.dy.axis[1], c_.dy.channel, call_.index, call_.count);
        zero(row, last - first, length);
      }
    }
  }

  void zero(int64_t row, int64_t from, int64_t to) const noexcept {
    if (to > from) std::memset(pixel(row, from), 0, (to - from) * call_.count * call_.scalar);
  }

  // The panels of a phase's weights, and where the staged numbers for each weight are.
  struct Weights {
    Panels panels;
    const char* columns;
    const int64_t* offsets;
    int64_t taps;
  };

  // Panels that fit a first cache together are gone through for a few pixels, so that dx is written
  // in its order; others one after the other, each for all pixels.
  void multiply(const Block& block, const Part& part, int64_t phase, int64_t tap) const noexcept {
    const int64_t taps = call_.tall(phase).taps * call_.wide(phase).taps;
    if (block.steps(call_.wide(phase)) <= 0) return;
    const int64_t before = padded(part) * call_.count * call_.scalar;
    const Weights weights = {panels(part, taps), room_.weights + before * tap,
                             call_.staged_offsets + tap, taps};
    const int64_t together = before * taps <= kFirstCache ? weights.panels.panels : 1;
    for (int64_t n = 0; n < weights.panels.panels; n += together) {
      multiply_panels(block, part, phase, weights, n, n + together);
    }
  }

  // All pixels of a phase, a few at a time.
  void multiply_panels(const Block& block, const Part& part, int64_t phase, const Weights& weights,
                       int64_t first, int64_t last) const noexcept {
    const Phase& tall = call_.tall(phase);
    const Phase& wide = call_.wide(phase);
    const int64_t step = c_.x.axis[1] * c_.axis[1].stride * call_.element;
    const void* rows[kMostRows];
    char* targets[kMostRows];
    int64_t found = 0;
    const auto multiply = [&] {
      for (int64_t n = first; n < last; ++n)
        multiply_pixels(part, weights, n, rows, targets, found);
      found = 0;
    };
    const int64_t length = block.steps(wide);
    const int64_t most = call_.kernels->pixels.rows;
    for (const Slab& slab : block) {
      for (int64_t row = 0; row < slab.rows(tall); ++row) {
        const int64_t at = block.target(slab, row, tall, wide) + part.first;
        char* target = call_.dx + at * call_.element;
        for (int64_t k = 0; k < length; ++k, target += step) {
          rows[found] = pixel(slab.at + row, k);
          targets[found] = target;
          if (++found == most) multiply();
        }
      }
    }
    if (found > 0) multiply();
  }

  void multiply_pixels(const Part& part, const Weights& weights, int64_t n, const void* const* rows,
                       char* const* pixels, int64_t count) const noexcept {
    const Kernels& kernels = *call_.kernels;
    const Panels& panels = weights.panels;
    const int64_t first = block_start(n, panels.panels, panels.vectors);
    const int64_t vectors = block_start(n + 1, panels.panels, panels.vectors) - first;
    const int64_t channel = first * kernels.lanes;
    const int64_t pitch = vectors * kernels.lanes;
    const int64_t channels = std::min(pitch, part.last - part.first - channel);
    const bool straight = call_.element == call_.scalar && channels == pitch;
    void* targets[kMostRows];
    void* sums[kMostRows];
    for (int64_t r = 0; r < count; ++r) {
      targets[r] = pixels[r] + channel * call_.element;
      sums[r] = straight ? targets[r] : room_.tile + r * pitch * call_.scalar;
    }
    kernels.multiply_rows(sums, rows, count, vectors, weights.offsets, weights.taps, call_.count,
                          weights.columns + channel * panels.length * call_.scalar);
    if (straight) return;
    const Segment all = {0, 0, channels};
    kernels.store(targets, count, 1, room_.tile, pitch, &all, 1);
  }

  const Call& call_;
  const Convolution& c_;
  const Room room_;
};

}  // namespace

void run_pixels(const Call& call, int64_t begin, int64_t end) { Task(call, begin).run(begin, end); }

}  // namespace neq::dgrad
