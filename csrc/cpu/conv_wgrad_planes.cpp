// conv_wgrad with x staged in planes.
//
// dw[i, j] is the product of two long rows: one of dy's channel, and one of x for weight j. Samples
// are staged, some at a time, as floats (doubles) with the zeros of the padding, which neighbouring
// rows share, dy in the same pitch as x with zeros in between. The row of x for a weight is then
// where its channel was staged, a few elements on: nothing is unfolded. With a stride, x is staged
// once per phase of it. One loop without borders multiplies a few rows by a few columns in
// registers (conv_wgrad_loops.h).
#include <algorithm>
#include <cstring>
#include <utility>

#include "conv_wgrad_plan.h"

namespace neq::conv {
namespace {

// Elements of the staged type from `from` on, up to `to`.
void zero(const Call& call, char* tile, int64_t from, int64_t to) noexcept {
  if (to > from) std::memset(tile + from * call.scalar, 0, (to - from) * call.scalar);
}

// `samples` planes behind each other, of which the steps of both ranges come from `source`; there
// are some. What lies before the first is never written, and zero since the tile was cleared.
void stage_planes(const Call& call, char* tile, const char* source, const char* readable,
                  int64_t sample_stride, const int64_t* step, const Range& tall, const Range& wide,
                  int64_t samples) noexcept {
  const int64_t pitch = call.steps[1].pitch;
  const int64_t start = tall.begin * pitch + wide.begin;
  int64_t rows = tall.end - tall.begin;
  int64_t length = wide.end - wide.begin;
  int64_t gap = pitch - length;
  int64_t row = pitch;
  if (gap == 0 && step[1] == 1 && step[0] == length) {  // rows lie together, here and there
    length *= rows;
    row = length;
    rows = 1;
  }
  const staging::Place place = {call.plane, row, gap, call.plane - rows * row};
  const staging::Rows from = {source,  sample_stride, step[0], step[1],
                              samples, rows,          length,  readable};
  call.staging->copy(tile + start * call.scalar, place, from);
}

void stage_row(const Call& call, char* tile, int64_t i, int64_t n, int64_t samples) noexcept {
  const Convolution& c = call.convolution;
  const Range tall = {0, c.axis[0].out, 0};
  const Range wide = {0, c.axis[1].out, 0};
  const int64_t first = n * c.dy.batch + call.index[i] * c.dy.channel;
  stage_planes(call, tile, call.dy + first * call.element, call.dy_end, c.dy.batch, c.dy.axis, tall,
               wide, samples);
  zero(call, tile, samples * call.plane, call.row);
}

class Task {
 public:
  Task(const Call& call, int64_t task, char* tile) noexcept
      : call_(call),
        c_(call.convolution),
        rows_(tile),
        columns_(tile + (call.rows_staged > 0 ? 0 : call.width * call.row * call.scalar)),
        block_(task / call.parts()),
        part_(task % call.parts()),
        begin_(block_start(block_, call.blocks, call.convolution.batch)) {}

  void run() noexcept {
    const int64_t end = block_start(block_ + 1, call_.blocks, c_.batch);
    const int64_t first = block_start(part_, call_.channel_blocks, c_.inputs);
    const int64_t last = block_start(part_ + 1, call_.channel_blocks, c_.inputs);
    clear_sums(first, last);
    clear_columns();
    for (int64_t n = begin_; n < end; n += call_.samples) {
      const int64_t samples = std::min(call_.samples, end - n);
      stage_rows(n, samples);
      if (part_ == 0) add_bias();
      for (int64_t channel = first; channel < last; channel += call_.channels) {
        const int64_t channels = std::min(call_.channels, last - channel);
        stage_columns(n, samples, channel, channels);
        multiply(channel, channels);
      }
    }
  }

 private:
  char* sums(int64_t i, int64_t column) const noexcept { return call_.sums(block_, i, column); }

  void clear_sums(int64_t first, int64_t last) noexcept {
    const int64_t weights = (last - first) * c_.taps() * call_.scalar;
    for (int64_t i = 0; i < call_.count; ++i) {
      std::memset(sums(i, first * c_.taps()), 0, weights);
      if (part_ == 0) call_.set_bias(block_, i, 0);
    }
  }

  // What staging leaves as it is: all of phases that never meet x, and what lies before x in
  // others; where channels are turned, the zeros between rows, too.
  void clear_columns() const noexcept {
    for (int64_t phase = 0; phase < call_.phases(); ++phase) {
      const auto [tall, wide] = ranges(phase);
      int64_t length = tall.begin * call_.steps[1].pitch + wide.begin;
      if (c_.x.channel == 1 || tall.empty() || wide.empty()) length = call_.column;
      for (int64_t k = 0; k < call_.channels; ++k) {
        zero(call_, columns_ + k * channel_bytes() + phase * call_.column * call_.scalar, 0,
             length);
      }
    }
  }

  // The steps of a phase that lie in x, along both dimensions.
  std::pair<Range, Range> ranges(int64_t phase) const noexcept {
    const int64_t phases = call_.steps[1].phases;
    return {Range::of(c_.axis[0], phase / phases, call_.steps[0].count),
            Range::of(c_.axis[1], phase % phases, call_.steps[1].count)};
  }

  void stage_rows(int64_t n, int64_t samples) noexcept {
    if (call_.rows_staged > 0) {
      const int64_t chunk = block_ * call_.chunks + (n - begin_) / call_.samples;
      rows_ = call_.rows + chunk * call_.width * call_.row * call_.scalar;
      return;
    }
    for (int64_t i = 0; i < call_.count; ++i) {
      stage_row(call_, rows_ + i * call_.row * call_.scalar, i, n, samples);
    }
  }

  void stage_columns(int64_t n, int64_t samples, int64_t channel, int64_t channels) const noexcept {
    const bool side_by_side = c_.x.channel == 1 && channels > 1;
    for (int64_t phase = 0; phase < call_.phases(); ++phase) {
      const auto [tall, wide] = ranges(phase);
      char* const tile = columns_ + phase * call_.column * call_.scalar;
      // Where nothing begins may be no address at all.
      if (tall.empty() || wide.empty()) continue;
      const int64_t first = n * c_.x.batch + channel * c_.x.channel + tall.first * c_.x.axis[0] +
                            wide.first * c_.x.axis[1];
      const char* const source = call_.x + first * call_.element;
      if (side_by_side) {
        turn_planes(tile, source, tall, wide, samples, channels);
      } else {
        const int64_t step[] = {c_.x.axis[0] * c_.axis[0].stride, c_.x.axis[1] * c_.axis[1].stride};
        for (int64_t k = 0; k < channels; ++k) {
          stage_planes(call_, tile + k * channel_bytes(), source + k * c_.x.channel * call_.element,
                       call_.x_end, c_.x.batch, step, tall, wide, samples);
        }
      }
      for (int64_t k = 0; k < channels; ++k) {
        zero(call_, tile + k * channel_bytes(), samples * call_.plane, call_.column);
      }
    }
  }

  int64_t channel_bytes() const noexcept { return call_.phases() * call_.column * call_.scalar; }

  // stage_planes for neighbouring channels that lie side by side. A vector's lanes are positions of
  // a row; those too many are made zero again before the next row comes.
  void turn_planes(char* tile, const char* source, const Range& tall, const Range& wide,
                   int64_t samples, int64_t channels) const noexcept {
    constexpr int64_t kMost = 64;
    const int64_t length = wide.end - wide.begin;
    const int64_t pitch = call_.steps[1].pitch;
    const int64_t step = c_.x.axis[1] * c_.axis[1].stride * call_.element;
    int64_t offsets[kMost];
    for (int64_t k = 0; k < std::min(kMost, length); ++k) offsets[k] = k * step;
    for (int64_t sample = 0; sample < samples; ++sample) {
      for (int64_t row = tall.begin; row < tall.end; ++row) {
        const char* const from =
            source + (sample * c_.x.batch + (row - tall.begin) * c_.axis[0].stride * c_.x.axis[0]) *
                         call_.element;
        const int64_t at = sample * call_.plane + row * pitch + wide.begin;
        for (int64_t k = 0; k < length; k += kMost) {
          call_.staging->transpose(tile + (at + k) * call_.scalar, channel_bytes() / call_.scalar,
                                   from + k * step, offsets, std::min(kMost, length - k), channels,
                                   call_.x_end);
        }
        const int64_t spilled = round_up(length, staging::kMaxLanes) - length;
        if (spilled == 0) continue;
        for (int64_t k = 0; k < channels; ++k) {
          zero(call_, tile + k * channel_bytes(), at + length, at + length + spilled);
        }
      }
    }
  }

  void multiply(int64_t channel, int64_t channels) const noexcept {
    const Kernels& kernels = *call_.kernels;
    const int64_t taps = c_.taps();
    const void* rows[kMostRows];
    const void* columns[kMostColumns];
    // As many in each tile as there are in any other, or one less: no tile is left with few.
    const int64_t tall = divide_up(call_.count, kernels.rows);
    for (int64_t i = 0; i < tall; ++i) {
      const int64_t row = block_start(i, tall, call_.count);
      const int64_t row_count = block_start(i + 1, tall, call_.count) - row;
      for (int64_t r = 0; r < row_count; ++r) {
        rows[r] = rows_ + (row + r) * call_.row * call_.scalar;
      }
      const int64_t wide = divide_up(channels * taps, kernels.columns[row_count - 1]);
      const char* x = columns_;
      int64_t tap = 0;
      for (int64_t k = 0; k < wide; ++k) {
        const int64_t column = block_start(k, wide, channels * taps);
        const int64_t column_count = block_start(k + 1, wide, channels * taps) - column;
        for (int64_t c = 0; c < column_count; ++c) {
          columns[c] = x + call_.offsets[tap];
          if (++tap < taps) continue;
          tap = 0;
          x += channel_bytes();
        }
        kernels.multiply(sums(row, channel * taps + column), call_.columns, rows, row_count,
                         columns, column_count, call_.length);
      }
    }
  }

  template <class Scalar>
  double sum_of(int64_t i) const noexcept {
    const auto* row = reinterpret_cast<const Scalar*>(rows_ + i * call_.row * call_.scalar);
    double parts[kStep] = {};
    for (int64_t k = 0; k < call_.length; k += kStep) {
      for (int64_t lane = 0; lane < kStep; ++lane) parts[lane] += row[k + lane];
    }
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum;
  }

  void add_bias() const noexcept {
    for (int64_t i = 0; i < call_.count; ++i) {
      const double sum = call_.scalar == 8 ? sum_of<double>(i) : sum_of<float>(i);
      call_.set_bias(block_, i, call_.bias(block_, i) + sum);
    }
  }

  const Call& call_;
  const Convolution& c_;
  char* rows_;
  char* columns_;
  int64_t block_;
  int64_t part_;
  int64_t begin_;
};

}  // namespace

void run_planes(const Call& call, int64_t task, char* tile) { Task(call, task, tile).run(); }

void stage_rows(const Call& call, int64_t begin, int64_t end) {
  const int64_t batch = call.convolution.batch;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row % call.width;
    const int64_t chunk = row / call.width;
    const int64_t block = chunk / call.chunks;
    const int64_t n = block_start(block, call.blocks, batch) + chunk % call.chunks * call.samples;
    const int64_t samples = std::min(call.samples, block_start(block + 1, call.blocks, batch) - n);
    if (i >= call.count || samples <= 0) continue;
    stage_row(call, call.rows + row * call.row * call.scalar, i, n, samples);
  }
}

}  // namespace neq::conv
