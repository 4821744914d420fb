// conv_wgrad where the channels of x lie side by side: they are the lanes of vectors, and x is read
// where it is.
//
// dw[i, r, s, :] is a sum of pixels of x, each times a number of dy's channel i. Output positions
// are taken in pieces of rows, few enough for the pixels they meet to stay in a first cache, and
// the active channels of dy are staged for them, side by side. A weight cuts the pieces at the
// borders of x; what is left of them are runs, over which one loop adds up a few channels of dy
// times a few vectors of x in registers (conv_wgrad_loops.h).
#include <algorithm>
#include <cstring>

#include "conv_wgrad_plan.h"

namespace neq::conv {
namespace {

// A part of a row of outputs.
struct Piece {
  int64_t sample;
  int64_t row;
  int64_t begin;
  int64_t end;
};

class Task {
 public:
  Task(const Call& call, int64_t task, char* tile) noexcept
      : call_(call),
        c_(call.convolution),
        rows_(tile),
        block_(task / call.parts()),
        part_(task % call.channel_blocks) {
    const int64_t block = task % call.parts() / call.channel_blocks;
    first_row_ = block_start(block, call.row_blocks, call.count);
    row_count_ = block_start(block + 1, call.row_blocks, call.count) - first_row_;
    copy_ = tile +
            round_up((call.positions * row_count_ + staging::kMaxLanes) * call.scalar, kCacheLine);
  }

  void run() noexcept {
    if (row_count_ == 0) return;
    const int64_t begin = block_start(block_, call_.blocks, call_.pieces);
    const int64_t end = block_start(block_ + 1, call_.blocks, call_.pieces);
    const int64_t lanes = call_.kernels->lanes;
    const int64_t vectors = divide_up(c_.inputs, lanes);
    const int64_t first = block_start(part_, call_.channel_blocks, vectors);
    const int64_t last = block_start(part_ + 1, call_.channel_blocks, vectors);
    const int64_t wide = divide_up(last - first, call_.kernels->vectors);
    clear_sums(first * lanes, last * lanes);
    for (int64_t piece = begin; piece < end; piece += call_.pieces_at_once) {
      count_ = std::min(call_.pieces_at_once, end - piece);
      for (int64_t k = 0; k < count_; ++k) pieces_[k] = piece_of(piece + k);
      stage_rows();
      if (part_ == 0) call_.scalar == 8 ? add_bias<double>() : add_bias<float>();
      for (int64_t k = 0; k < wide; ++k) {
        const int64_t vector = first + block_start(k, wide, last - first);
        const int64_t next = first + block_start(k + 1, wide, last - first);
        for (int64_t tap = 0; tap < c_.taps(); ++tap)
          accumulate(tap, vector * lanes, next - vector);
      }
    }
  }

 private:
  void clear_sums(int64_t first, int64_t last) const noexcept {
    for (int64_t i = 0; i < row_count_; ++i) {
      for (int64_t tap = 0; tap < c_.taps(); ++tap) {
        std::memset(sums(i, tap * call_.per_tap + first), 0, (last - first) * call_.scalar);
      }
      if (part_ == 0) call_.set_bias(block_, first_row_ + i, 0);
    }
  }

  // Of this task's rows.
  char* sums(int64_t i, int64_t column) const noexcept {
    return call_.sums(block_, first_row_ + i, column);
  }

  Piece piece_of(int64_t piece) const noexcept {
    const int64_t row = piece / call_.pieces_of_row;
    const int64_t part = piece % call_.pieces_of_row;
    const int64_t out = c_.axis[1].out;
    return {row / c_.axis[0].out, row % c_.axis[0].out, block_start(part, call_.pieces_of_row, out),
            block_start(part + 1, call_.pieces_of_row, out)};
  }

  // rows_[position][i], the pieces behind each other.
  void stage_rows() noexcept {
    switch (c_.dtype) {
      case NEQ_F32:
        return gather<float>(rows_);
      case NEQ_F64:
        return gather<double>(rows_);
      case NEQ_F16:
      case NEQ_BF16:
        // The copy of pixels is not in use yet.
        gather<uint16_t>(copy_);
        const int64_t length = positions() * row_count_;
        const staging::Rows from = {copy_, 0, 0, 1, 1, 1, length, copy_ + length * call_.element};
        call_.staging->copy(rows_, {}, from);
    }
  }

  int64_t positions() const noexcept { return count_ * (pieces_[0].end - pieces_[0].begin); }

  template <class Storage>
  void gather(char* tile) const noexcept {
    const Strides& dy = c_.dy;
    const int32_t* const index = call_.index + first_row_;
    auto* to = reinterpret_cast<Storage*>(tile);
    for (int64_t k = 0; k < count_; ++k) {
      const Piece& piece = pieces_[k];
      const auto* from = reinterpret_cast<const Storage*>(call_.dy) + piece.sample * dy.batch +
                         piece.row * dy.axis[0] + piece.begin * dy.axis[1];
      for (int64_t q = piece.begin; q < piece.end; ++q, from += dy.axis[1]) {
        for (int64_t i = 0; i < row_count_; ++i) *to++ = from[index[i] * dy.channel];
      }
    }
  }

  template <class Scalar>
  void add_bias() const noexcept {
    constexpr int64_t kAtOnce = 32;
    for (int64_t first = 0; first < row_count_; first += kAtOnce) {
      const int64_t some = std::min(kAtOnce, row_count_ - first);
      const auto* row = reinterpret_cast<const Scalar*>(rows_) + first;
      double all[kAtOnce] = {};
      for (int64_t k = 0; k < positions(); ++k, row += row_count_) {
        for (int64_t i = 0; i < some; ++i) all[i] += row[i];
      }
      for (int64_t i = 0; i < some; ++i) {
        const int64_t place = first_row_ + first + i;
        call_.set_bias(block_, place, call_.bias(block_, place) + all[i]);
      }
    }
  }

  // One weight of some channels.
  void accumulate(int64_t tap, int64_t channel, int64_t vectors) noexcept {
    const Axis& tall = c_.axis[0];
    const Axis& wide = c_.axis[1];
    const int64_t above = tap / wide.kernel * tall.dilation - tall.padding;
    const int64_t before = tap % wide.kernel * wide.dilation - wide.padding;
    // Outputs whose input is in x; of rows cut in pieces there is one piece here.
    const int64_t first = before < 0 ? divide_up(-before, wide.stride) : 0;
    const int64_t last = before < wide.in ? (wide.in - before - 1) / wide.stride + 1 : 0;
    const int64_t begin = std::max(pieces_[0].begin, first);
    const int64_t end = std::min(pieces_[0].end, last);
    if (begin >= end) return;

    const int64_t step = wide.stride * c_.x.axis[1] * call_.element;
    const int64_t bytes = vectors * call_.kernels->lanes * call_.element;
    char* const target = sums(0, tap * call_.per_tap + channel);
    Run runs[kPieces];
    int64_t run_count = 0;
    int64_t at = begin - pieces_[0].begin;
    for (int64_t k = 0; k < count_; ++k, at += pieces_[0].end - pieces_[0].begin) {
      const int64_t row = pieces_[k].row * tall.stride + above;
      if (row < 0 || row >= tall.in) continue;
      const int64_t pixel = pieces_[k].sample * c_.x.batch + row * c_.x.axis[0] +
                            (begin * wide.stride + before) * c_.x.axis[1] + channel;
      const char* const x = call_.x + pixel * call_.element;
      if (x + (end - begin - 1) * step + bytes <= call_.x_end) {
        runs[run_count++] = {x, at};
      } else {  // the last vector would read beyond the tensor
        copy(x, channel, bytes, end - begin, step);
        const Run run = {copy_, at};
        add(target, vectors, &run, 1, end - begin, bytes);
      }
    }
    add(target, vectors, runs, run_count, end - begin, step);
  }

  void copy(const char* x, int64_t channel, int64_t bytes, int64_t length,
            int64_t step) const noexcept {
    const int64_t there = std::min(bytes, (c_.inputs - channel) * call_.element);
    for (int64_t k = 0; k < length; ++k) {
      std::memcpy(copy_ + k * bytes, x + k * step, there);
      std::memset(copy_ + k * bytes + there, 0, bytes - there);
    }
  }

  void add(char* sums, int64_t vectors, const Run* runs, int64_t run_count, int64_t length,
           int64_t step) const noexcept {
    const Kernels& kernels = *call_.kernels;
    const int64_t tall = divide_up(row_count_, kernels.rows);
    for (int64_t i = 0; i < tall; ++i) {
      const int64_t row = block_start(i, tall, row_count_);
      const int64_t row_count = block_start(i + 1, tall, row_count_) - row;
      kernels.accumulate(sums + row * call_.columns * call_.scalar, call_.columns,
                         rows_ + row * call_.scalar, row_count_, row_count, vectors, runs,
                         run_count, length, step);
    }
  }

  const Call& call_;
  const Convolution& c_;
  char* rows_;
  char* copy_;
  int64_t block_;
  int64_t part_;
  int64_t first_row_;
  int64_t row_count_;
  int64_t count_ = 0;
  Piece pieces_[kPieces];
};

}  // namespace

void run_lanes(const Call& call, int64_t task, char* tile) { Task(call, task, tile).run(); }

}  // namespace neq::conv
