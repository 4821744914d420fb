// compact: list[k] = the k-th channel c with mask[c], or with |velocity[c]| >= epsilon, then -1;
// count = how many there are.  For all layers of a model at once.
//
// One nanosecond a channel, without a branch to guess wrong: a model's few ten thousand take less
// time than waking a second thread, or setting up vectors, would save.
#include "compact.h"

#include <algorithm>

#include "neq/neq.h"

namespace neq::compact {
namespace {

template <class Element, class Active>
int32_t* compact(const neq_choice& layer, int32_t* count, int32_t* list, Active active) noexcept {
  const auto* data = static_cast<const Element*>(layer.data);
  const auto size = static_cast<int32_t>(layer.size);
  int32_t found = 0;
  for (int32_t c = 0; c < size; ++c) {
    list[found] = c;  // overwritten by the next one unless it counts
    found += active(data[c]);
  }
  std::fill(list + found, list + size, -1);
  *count = found;
  return list + size;
}

}  // namespace
}  // namespace neq::compact

neq_status neq_compact_cpu(const neq_choice* layers, int64_t count, int32_t kind, double epsilon,
                           int32_t* lists) {
  using namespace neq::compact;
  const neq_status status = check(layers, count, kind, epsilon, lists);
  if (status != NEQ_OK) return status;
  const auto moving = [=](auto velocity) { return moves(velocity, epsilon); };
  int32_t* list = lists + count;
  for (int64_t l = 0; l < count; ++l) {
    switch (kind) {
      case NEQ_MASK:
        list = compact<uint8_t>(layers[l], lists + l, list, [](uint8_t flag) { return flag != 0; });
        break;
      case NEQ_VELOCITY_F32:
        list = compact<float>(layers[l], lists + l, list, moving);
        break;
      case NEQ_VELOCITY_F64:
        list = compact<double>(layers[l], lists + l, list, moving);
        break;
    }
  }
  return NEQ_OK;
}
