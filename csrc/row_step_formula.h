// The formulas of row_sgd and row_adamw, for one element or a vector of them, on any device. The
// file that includes this one defines NEQ_INLINE, and root_of and larger for vectors.
#include <math.h>

#include "row_step.h"

namespace neq::rows {
namespace {

NEQ_INLINE float root_of(float value) { return sqrt(value); }
NEQ_INLINE double root_of(double value) { return sqrt(value); }

// As torch.maximum: NaN where either is.
NEQ_INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }
NEQ_INLINE double larger(double a, double b) { return a > b || a != a ? a : b; }

// The numbers of a step in the type of the sums. The lanes of V all hold the same one: a vector
// times a number is a vector.
template <class Sum>
struct Rounded {
  Rounded() = default;
  NEQ_INLINE explicit Rounded(const Numbers& n)
      : sign(static_cast<Sum>(n.sign)),
        decay(static_cast<Sum>(n.decay)),
        keep(static_cast<Sum>(n.keep)),
        momentum(static_cast<Sum>(n.momentum)),
        fresh(static_cast<Sum>(n.fresh)),
        nesterov(static_cast<Sum>(n.nesterov)),
        second(static_cast<Sum>(n.second)),
        fresh_second(static_cast<Sum>(n.fresh_second)),
        root(static_cast<Sum>(n.root)),
        eps(static_cast<Sum>(n.eps)),
        rate(static_cast<Sum>(n.rate)) {}

  Sum sign, decay, keep, momentum, fresh, nesterov, second, fresh_second, root, eps, rate;
};

// One element, or a vector of them: x[t] is tensor t's, and what changes is changed in place.
template <Formula kFormula, class Sum, class V>
NEQ_INLINE void apply(const Rounded<Sum>& n, V* x) {
  V g = n.sign * x[1];
  if constexpr (kFormula == Formula::kSgd || kFormula == Formula::kSgdMomentum) {
    if (n.decay != 0) g = g + n.decay * x[0];
    if constexpr (kFormula == Formula::kSgdMomentum) {
      x[2] = n.momentum * x[2] + n.fresh * g;
      g = n.nesterov != 0 ? g + n.nesterov * x[2] : x[2];
    }
    x[0] = x[0] - n.rate * g;
  } else {
    if (n.decay != 0) g = g + n.decay * x[0];
    V& m = x[2];
    V& v = x[3];
    m = m + n.fresh * (g - m);
    v = n.second * v + n.fresh_second * g * g;
    V largest = v;
    if constexpr (kFormula == Formula::kAmsgrad) largest = x[4] = larger(x[4], v);
    x[0] = n.keep * x[0] - n.rate * (m / (root_of(largest) * n.root + n.eps));
  }
}

}  // namespace
}  // namespace neq::rows
