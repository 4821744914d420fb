// What row_sgd and row_adamw share on every device: checks, how the active rows of a parameter lie
// in memory, and an optimizer's options as the numbers its formula reads.
#pragma once

#include <cstdint>

#include "neq/neq.h"

namespace neq::rows {

enum class Walk : int32_t {
  kRows,     // a row is one run of neighbouring elements, in all tensors alike
  kColumns,  // neighbouring elements belong to neighbouring neurons, in all tensors alike
  kStrided,  // anything else
};

// The active rows of one parameter: `rows` of them with `run` elements each.
struct Layout {
  Walk walk;
  bool all;  // no index: row i is neuron i (or, under kRows, there is one row: everything)
  int64_t rows;
  int64_t run;
  int64_t stride;  // elements from a row to the next (kRows), from a line to the next (kColumns)
};

// The formulas, each with the tensors it reads and writes; data[1] is the gradient.
enum class Formula : int32_t { kSgd = 0, kSgdMomentum = 1, kAdam = 2, kAmsgrad = 3 };
inline constexpr int kFormulas = 4;
inline constexpr int kTensors[kFormulas] = {2, 3, 4, 5};

template <Formula kFormula>
inline constexpr int kTensorsOf = kTensors[static_cast<int>(kFormula)];

constexpr int tensors_of(Formula formula) { return kTensors[static_cast<int>(formula)]; }

// The numbers of a step of one parameter. sign is -1 to maximize; unused ones are 0.
struct Numbers {
  double sign;
  double decay;     // g += decay * p
  double keep;      // row_adamw: p *= keep
  double momentum;  // row_sgd: b = momentum * b + fresh * g;  row_adamw: m += fresh * (g - m)
  double fresh;
  double nesterov;  // row_sgd: g += nesterov * b, where not 0
  double second;    // row_adamw: v = second * v + fresh_second * g * g
  double fresh_second;
  double root;  // row_adamw: 1 / sqrt(1 - beta2^t)
  double eps;
  double rate;  // p -= rate * update
};

Formula formula_of(const neq_sgd& options) noexcept;
Formula formula_of(const neq_adamw& options) noexcept;
Numbers numbers_of(const neq_sgd& options, const neq_row_parameter& parameter) noexcept;
Numbers numbers_of(const neq_adamw& options, const neq_row_parameter& parameter) noexcept;

// Everything but the contents of the index, which may be another device's.
neq_status check(const neq_sgd* options) noexcept;
neq_status check(const neq_adamw* options) noexcept;
neq_status check(const neq_row_parameter* parameters, int64_t count, Formula formula) noexcept;
// `position` names the parameter in the message.
neq_status check_index(const neq_row_parameter& parameter, int64_t position) noexcept;

Layout understand(const neq_row_parameter& parameter, Formula formula) noexcept;

}  // namespace neq::rows
