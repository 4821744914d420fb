// The portable loops of channel_moments, and what the vector ones fall back on.
#include "channel_moments.h"
#include "channel_moments_table.h"
#include "element.h"

namespace neq::moments {
namespace {

template <class Element>
double at(const char* data) noexcept {
  return Element::load(*reinterpret_cast<const typename Element::Storage*>(data));
}

struct Moments {
  double ab = 0;
  double aa = 0;
  double bb = 0;

  void add(double a, double b) noexcept {
    ab += a * b;
    aa += a * a;
    bb += b * b;
  }
};

void add_to(Sums sums, int64_t channel, const Moments& moments) noexcept {
  sums.data[channel] += moments.ab;
  sums.data[channel + sums.distance] += moments.aa;
  sums.data[channel + 2 * sums.distance] += moments.bb;
}

template <class A, class B>
struct Loops {
  static void strided(Sums sums, const Piece& piece) {
    for (int64_t c = 0; c < piece.channels; ++c) {
      const char* a = piece.a + c * piece.channel.a;
      const char* b = piece.b + c * piece.channel.b;
      Moments moments;
      for (int64_t k = 0; k < piece.length; ++k) {
        moments.add(at<A>(a + k * piece.along.a), at<B>(b + k * piece.along.b));
      }
      add_to(sums, c, moments);
    }
  }

  static void rows(Sums sums, const Piece& piece) {
    double* ab = sums.data;
    double* aa = ab + sums.distance;
    double* bb = aa + sums.distance;
    for (int64_t r = 0; r < piece.length; ++r) {
      const auto* a = reinterpret_cast<const typename A::Storage*>(piece.a + r * piece.along.a);
      const auto* b = reinterpret_cast<const typename B::Storage*>(piece.b + r * piece.along.b);
      for (int64_t c = 0; c < piece.channels; ++c) {
        const double left = A::load(a[c]);
        const double right = B::load(b[c]);
        ab[c] += left * right;
        aa[c] += left * left;
        bb[c] += right * right;
      }
    }
  }

  // Sums side by side keep the additions independent, so that a compiler can use what vectors
  // there are without being allowed to reorder them.
  static void runs(Sums sums, const Piece& piece) {
    constexpr int64_t kLanes = 4;
    for (int64_t c = 0; c < piece.channels; ++c) {
      const auto* a = reinterpret_cast<const typename A::Storage*>(piece.a + c * piece.channel.a);
      const auto* b = reinterpret_cast<const typename B::Storage*>(piece.b + c * piece.channel.b);
      Moments lanes[kLanes];
      int64_t k = 0;
      for (; k + kLanes <= piece.length; k += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l) lanes[l].add(A::load(a[k + l]), B::load(b[k + l]));
      }
      for (; k < piece.length; ++k) lanes[0].add(A::load(a[k]), B::load(b[k]));
      for (const Moments& lane : lanes) add_to(sums, c, lane);
    }
  }
};

}  // namespace

const Kernels& scalar_kernels(neq_dtype a, neq_dtype b) noexcept {
  return Table<Loops, Float, Double, Half, BFloat16>::of(a, b);
}

}  // namespace neq::moments
