// neq_compact_cpu against a loop, in buffers of exactly the right size.
#include "compact_cases.h"

namespace {

void check_refusals() {
  const uint8_t mask[3] = {1, 0, 1};
  std::vector<int32_t> lists(4, 7);
  const auto call = [&](neq_choice layer, int32_t kind, double epsilon) {
    return neq_compact_cpu(&layer, 1, kind, epsilon, lists.data());
  };
  CHECK(neq_compact_cpu(nullptr, 0, NEQ_MASK, 0, nullptr) == NEQ_OK);
  CHECK(call({nullptr, 0}, NEQ_MASK, 0) == NEQ_OK);
  CHECK(lists[0] == 0);
  lists[0] = 7;
  CHECK_REFUSED(neq_compact_cpu(nullptr, 1, NEQ_MASK, 0, lists.data()), "layers: expected");
  CHECK_REFUSED(neq_compact_cpu(nullptr, -1, NEQ_MASK, 0, lists.data()), "layers: expected");
  CHECK_REFUSED(call({mask, -1}, NEQ_MASK, 0), "expected 0 to 2147483647 channels, got -1");
  CHECK_REFUSED(call({mask, INT64_MAX}, NEQ_MASK, 0), "expected 0 to 2147483647 channels");
  CHECK_REFUSED(call({nullptr, 3}, NEQ_MASK, 0), "layers: expected data");
  CHECK_REFUSED(call({mask, 3}, 3, 0), "kind: expected");
  CHECK_REFUSED(call({mask, 3}, -1, 0), "kind: expected");
  CHECK_REFUSED(call({mask, 0}, NEQ_VELOCITY_F32, -1), "epsilon: expected a number >= 0");
  CHECK_REFUSED(call({mask, 0}, NEQ_VELOCITY_F64, NAN), "epsilon: expected a number >= 0");
  const neq_choice layer = {mask, 3};
  CHECK_REFUSED(neq_compact_cpu(&layer, 1, NEQ_MASK, 0, nullptr), "lists: expected memory");
  CHECK(lists == std::vector<int32_t>(4, 7));
}

}  // namespace

int main() {
  check_masks(neq_compact_cpu);
  check_velocities<float>(neq_compact_cpu, NEQ_VELOCITY_F32);
  check_velocities<double>(neq_compact_cpu, NEQ_VELOCITY_F64);
  check_refusals();
  std::puts("compact: ok");
}
