// The loops of staging for one instruction set. The file that includes it defines NEQ_LOOP, which
// puts that set on a function, NEQ_LOOP_INLINE likewise, and hands in an element E of
// vectors_<set>.h and, for `transpose`, one that also has kSide and turn(to, pitch, from, k,
// length):
//   to[i * pitch + side] = from[side][k + i] for i < length and side < kSide
#include <algorithm>
#include <cstdint>

#include "staging.h"
#include "tensor.h"

namespace neq::staging {
namespace {

// One row, by whole vectors up to `whole`, which may be beyond its end.
template <class E>
NEQ_LOOP_INLINE void copy_row(typename E::Vectors::Scalar* to, const typename E::Storage* from,
                              int64_t step, int64_t length, int64_t whole) {
  using V = typename E::Vectors;
  int64_t k = 0;
  if (step == 1) {
    for (; k < whole; k += V::kLanes) V::store(to + k, E::load_vector(from + k));
  } else if (step == 2) {
    for (; k < whole; k += V::kLanes) V::store(to + k, E::load_even(from + 2 * k));
  }
  for (; k < length; ++k) to[k] = E::load(from[k * step]);
}

template <class V>
NEQ_LOOP_INLINE void zero_scalars(typename V::Scalar* to, int64_t n) {
  for (int64_t k = 0; k < n; k += V::kLanes) V::store(to + k, V::zero());
}

// Rows that are a vector's part with the zeros behind them: one load of `Lanes` and one store each.
template <class E, class Lanes>
NEQ_LOOP_INLINE void copy_short_rows(typename E::Vectors::Scalar* to,
                                     const typename E::Storage* from, const Place& place,
                                     const Rows& rows) {
  const Lanes lanes(LaneRange{0, rows.length});
  const Readable readable = {rows.source, rows.readable};
  for (int64_t row = 0; row < rows.rows; ++row, from += rows.row_stride, to += place.row_pitch) {
    E::Vectors::store(to, E::load(from, lanes, readable));
  }
}

template <class E>
NEQ_LOOP_INLINE void copy_rows(typename E::Vectors::Scalar* to, const typename E::Storage* from,
                               const Place& place, const Rows& rows) {
  using V = typename E::Vectors;
  const int64_t step = rows.stride;
  const int64_t vectors =
      step == 1 || step == 2 ? divide_up(rows.length, V::kLanes) * V::kLanes : 0;
  // A row's last vector reads beyond it, unless that is beyond the tensor.
  const int64_t within = vectors ? (rows.length - (step - 1)) / V::kLanes * V::kLanes : 0;
  for (int64_t row = 0; row < rows.rows; ++row, from += rows.row_stride, to += place.row_pitch) {
    const bool readable = reinterpret_cast<const char*>(from + step * vectors) <= rows.readable;
    copy_row<E>(to, from, step, rows.length, readable ? vectors : within);
    zero_scalars<V>(to + rows.length, place.row_zeros);
  }
}

template <class E>
NEQ_LOOP void copy(void* target, const Place& place, const Rows& rows) {
  using V = typename E::Vectors;
  const Rows r = rows;  // copies that the stores below cannot be suspected to change
  const Place p = place;
  const bool is_short = r.length + p.row_zeros <= V::kLanes;
  for (int64_t unit = 0; unit < r.units; ++unit) {
    const auto* const from =
        reinterpret_cast<const typename E::Storage*>(r.source) + unit * r.unit_stride;
    auto* const to = static_cast<typename V::Scalar*>(target) + unit * p.unit_pitch;
    if (is_short && r.stride == 1) {
      copy_short_rows<E, typename E::Lanes>(to, from, p, r);
    } else if (is_short && r.stride == 2) {
      copy_short_rows<E, typename E::EvenLanes>(to, from, p, r);
    } else {
      copy_rows<E>(to, from, p, r);
    }
    zero_scalars<V>(to + (r.rows - 1) * p.row_pitch + r.length + p.row_zeros, p.unit_zeros);
  }
}

// Squares of E::kSide lanes and neighbours, turned in registers.
template <class E>
NEQ_LOOP void transpose(void* target, int64_t pitch, const char* source, const int64_t* offsets,
                        int64_t count, int64_t length, const char* readable) {
  using Storage = typename E::Storage;
  constexpr int64_t kSide = E::kSide;
  auto* to = static_cast<typename E::Vectors::Scalar*>(target);
  for (int64_t lane = 0; lane < count; lane += kSide) {
    const int64_t lanes = std::min(kSide, count - lane);
    const Storage* from[kSide];
    const char* last = source;
    for (int64_t side = 0; side < kSide; ++side) {
      const char* const row = source + offsets[lane + std::min(side, lanes - 1)];
      from[side] = reinterpret_cast<const Storage*>(row);
      last = std::max(last, row);
    }
    int64_t k = 0;
    if constexpr (kSide > 1) {
      for (; k < length; k += kSide) {
        if (last + (k + kSide) * static_cast<int64_t>(sizeof(Storage)) > readable) break;
        E::turn(to + k * pitch + lane, pitch, from, k, std::min(kSide, length - k));
      }
    }
    for (; k < length; ++k) {
      for (int64_t side = 0; side < lanes; ++side)
        to[k * pitch + lane + side] = E::load(from[side][k]);
    }
  }
}

}  // namespace
}  // namespace neq::staging
