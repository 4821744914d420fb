// What depthwise_wgrad is tested with on every device: shapes, and where its rows are.
#pragma once

#include "convolution.h"

namespace depthwise_wgrad {

using namespace convolution;

inline Result outputs_for(const Problem& problem) {
  return rows_for(problem, problem.outputs(), 1);
}

inline void check_result(const Problem& problem, const std::vector<int32_t>& index,
                         const Result& result) {
  const int64_t multiplier = problem.outputs() / problem.shape.inputs;
  for (int64_t o = 0; o < problem.outputs(); ++o) {
    const bool active = std::find(index.begin(), index.end(), o) != index.end();
    check_row(problem, result, o, active ? o : -1, o / multiplier);
  }
}

inline std::vector<Shape> depthwise_shapes() {
  std::vector<Shape> shapes;
  for (const Order order : {kPlanes, kLast, kMixed}) {
    const std::vector<Shape> all = {
        {3, 19, 19, {7, 7}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // planes below a vector
        {5, 9, 9, {3, 3}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},
        {2, 17, 17, {14, 13}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, order},  // phases
        {2, 3, 3, {21, 37}, {5, 5}, {1, 1}, {2, 2}, {1, 1}, order},    // three chunks of taps
        {1, 2, 2, {70, 66}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},    // several bands
        {1, 3, 6, {90, 40}, {3, 3}, {2, 1}, {1, 0}, {1, 2}, order},
        {2, 8, 24, {6, 9}, {2, 4}, {3, 2}, {0, 3}, {2, 1}, order},   // a multiplier
        {2, 12, 12, {5, 4}, {3, 3}, {1, 1}, {0, 0}, {1, 1}, order},  // no padding
        {2, 11, 11, {6, 5}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {2, 5, 5, {4, 4}, {3, 3}, {1, 1}, {5, 4}, {1, 1}, order},  // more padding than input
        {1, 4, 4, {9, 9}, {3, 2}, {5, 7}, {1, 1}, {3, 2}, order},  // a stride beyond the kernel
        {1, 1, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, order},
        {2, 300, 300, {3, 2}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // several chunks of channels
        {9, 72, 72, {3, 4}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},    // an odd number of vectors
        {2, 40, 40, {13, 20}, {3, 3}, {2, 1}, {1, 1}, {1, 1}, order},  // and of walks
        {3, 20, 20, {33}, {4}, {1}, {3}, {1}, order},                  // sequences
        {1, 2, 4, {2500}, {3}, {2}, {1}, {4}, order},
        {0, 4, 4, {6, 6}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, order},  // an empty batch
    };
    shapes.insert(shapes.end(), all.begin(), all.end());
  }
  return shapes;
}

}  // namespace depthwise_wgrad
