#include "pack_channels_plan.h"

#include <algorithm>

namespace neq::pack {
namespace {

constexpr int64_t kLine = 64;
// Memory is read as it lies unless more than this many lines without an active channel come for
// each with one: skipping single lines costs the processor its stride.
constexpr int64_t kDenseLines = 8;
// Rows up to half as long are taken several at a time, as one.
constexpr int64_t kLongRow = 2048;
constexpr int64_t kMaxMerged = 32;

// The group of the channels from `source` on, of which active channel `start` is the next.
Group group_at(int64_t source, int64_t lanes, const RowPlan& plan, int64_t start, int64_t* next) {
  uint32_t active = 0;
  int64_t i = start;
  for (; i < plan.count && plan.index[i] < source + lanes; ++i) {
    active |= 1u << (plan.index[i] - source);
  }
  *next = i;
  const uint32_t low = active & ((1u << lanes / 2) - 1);
  return {static_cast<int32_t>(source), static_cast<int32_t>(start),
          static_cast<int32_t>(start + __builtin_popcount(low)), active};
}

int64_t start_of_group(int64_t channel, int64_t lanes, int64_t channels) noexcept {
  return std::min(channel / lanes * lanes, std::max<int64_t>(channels - lanes, 0));
}

// Groups that read the whole row, those without an active channel among them unless most are.
void plan_lines(const Kernels& kernels, Group* groups, RowPlan* plan) noexcept {
  int64_t found = 0;
  int64_t next = 0;
  for (int64_t channel = 0; channel < plan->channels; channel += kernels.lanes) {
    const int64_t source = start_of_group(channel, kernels.lanes, plan->channels);
    groups[found++] = group_at(source, kernels.lanes, *plan, next, &next);
  }
  const auto is_empty = [](const Group& group) { return group.lanes == 0; };
  const int64_t empty = std::count_if(groups, groups + found, is_empty);
  if (empty > kDenseLines * (found - empty)) {
    found = std::remove_if(groups, groups + found, is_empty) - groups;
  }
  plan->group_count = found;
}

void merge_rows(const Geometry& geometry, Group* groups, RowPlan* plan) noexcept {
  const int64_t source_bytes = geometry.channels * geometry.element;
  const bool contiguous = geometry.outer_dims == 1 && geometry.outer[0].source == source_bytes &&
                          geometry.outer[0].target == geometry.width * geometry.element;
  if (!contiguous) return;
  plan->merged = std::clamp<int64_t>(kLongRow / source_bytes, 1, kMaxMerged);
  for (int64_t row = 1; row < plan->merged; ++row) {
    for (int64_t g = 0; g < plan->group_count; ++g) {
      Group group = groups[g];
      group.source += static_cast<int32_t>(row * plan->channels);
      group.target += static_cast<int32_t>(row * plan->width);
      group.middle += static_cast<int32_t>(row * plan->width);
      groups[row * plan->group_count + g] = group;
    }
  }
}

}  // namespace

void plan_groups(const Kernels& kernels, Group* groups, RowPlan* plan) noexcept {
  if (kernels.lanes == 0 || plan->channels < kernels.fewest) return;
  int64_t found = 0;
  for (int64_t i = 0; i < plan->count;) {
    const int64_t source = start_of_group(plan->index[i], kernels.lanes, plan->channels);
    const int64_t start = i;
    groups[found++] = group_at(source, kernels.lanes, *plan, start, &i);
    if (start + kernels.lanes <= plan->width) {
      plan->exact_groups = found;
      plan->tail = i;
    }
  }
  if (plan->count < kernels.sparse * found) {
    plan->exact_groups = plan->tail = 0;
    return;
  }
  plan->group_count = found;
}

int64_t max_groups(const Geometry& geometry) noexcept {
  if (geometry.walk != Walk::kRows) return 0;
  const int64_t lines = divide_up(geometry.channels * geometry.element, kLine);
  return std::max(geometry.width, lines) + kLongRow / kLine + kMaxMerged;
}

RowPlan plan_rows(const Kernels& kernels, const Geometry& geometry, const int32_t* index,
                  int64_t count, Group* groups) noexcept {
  RowPlan plan = {index, groups, 0, 0, 0, count, geometry.width, geometry.channels, 1};
  if (geometry.walk != Walk::kRows || geometry.channels < kernels.fewest || count == 0) return plan;
  if (kernels.pack_rows) {
    plan_lines(kernels, groups, &plan);
    merge_rows(geometry, groups, &plan);
  } else {
    plan_groups(kernels, groups, &plan);
  }
  return plan;
}

}  // namespace neq::pack
