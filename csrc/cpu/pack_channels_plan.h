// How pack_channels moves a row of neighbouring channels: the same for every row, so planned once.
#pragma once

#include <cstdint>

#include "pack_channels.h"
#include "pack_channels_geometry.h"

namespace neq::pack {

// Room for the groups of any plan, whatever the instruction set.
int64_t max_groups(const Geometry& geometry) noexcept;

// Adds groups of active channels only, at most one per channel; none where they lie too far apart,
// and the kernels have none for them. For copy_rows.
void plan_groups(const Kernels& kernels, Group* groups, RowPlan* plan) noexcept;

// Fills `groups`; the plan refers to them and to `index`.
RowPlan plan_rows(const Kernels& kernels, const Geometry& geometry, const int32_t* index,
                  int64_t count, Group* groups) noexcept;

}  // namespace neq::pack
