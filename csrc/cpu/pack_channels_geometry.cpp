#include "pack_channels_geometry.h"

#include <algorithm>

#include "status.h"

namespace neq::pack {
namespace {

constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kBlockBytes = 64 << 10;
constexpr int64_t kPlaneRun = 4096;
constexpr int64_t kStridedRun = 64;

neq_status check_pair(const neq_tensor& dy, int32_t dim, const neq_tensor& packed) noexcept {
  if (dim < 0 || dim >= dy.ndim) {
    return fail(NEQ_INVALID_ARGUMENT, "dim: expected 0 to %d, a dimension of dy, got %d",
                dy.ndim - 1, dim);
  }
  if (dy.size[dim] > INT32_MAX) {
    return fail(NEQ_UNSUPPORTED, "dy: expected at most %d channels, got %lld", INT32_MAX,
                static_cast<long long>(dy.size[dim]));
  }
  if (packed.dtype != dy.dtype || packed.ndim != dy.ndim) {
    return fail(NEQ_INVALID_ARGUMENT,
                "packed: expected dy's dtype %d and %d dimensions, got dtype %d and %d dimensions",
                dy.dtype, dy.ndim, packed.dtype, packed.ndim);
  }
  if (packed.size[dim] >
      INT32_MAX) {  // possible where another size is 0, and scratch would not fit
    return fail(NEQ_UNSUPPORTED, "packed: expected at most %d channels, got %lld", INT32_MAX,
                static_cast<long long>(packed.size[dim]));
  }
  for (int32_t d = 0; d < dy.ndim; ++d) {
    if (d != dim && packed.size[d] != dy.size[d]) {
      return fail(NEQ_INVALID_ARGUMENT, "packed: expected dy's size %lld in dimension %d, got %lld",
                  static_cast<long long>(dy.size[d]), d, static_cast<long long>(packed.size[d]));
    }
  }
  return check_own_memory("packed", packed);
}

// Sorts the dimensions other than the channels by the packed strides and merges what lies together.
int32_t collapse(const neq_tensor& dy, int32_t dim, const neq_tensor& packed, int64_t element,
                 Dim* dims) noexcept {
  int32_t found = 0;
  for (int32_t d = 0; d < dy.ndim; ++d) {
    if (d != dim && dy.size[d] != 1) {
      dims[found++] = {dy.size[d], dy.stride[d] * element, packed.stride[d] * element};
    }
  }
  std::sort(dims, dims + found, [](const Dim& a, const Dim& b) {
    return a.target != b.target ? a.target > b.target : a.source > b.source;
  });
  int32_t kept = 0;
  for (int32_t d = 0; d < found; ++d) {
    const Dim& inner = dims[d];
    Dim* outer = kept ? &dims[kept - 1] : nullptr;
    if (outer && outer->source == inner.source * inner.size &&
        outer->target == inner.target * inner.size) {
      *outer = {outer->size * inner.size, inner.source, inner.target};
    } else {
      dims[kept++] = inner;
    }
  }
  return kept;
}

void cut_into_blocks(Geometry* geometry) noexcept {
  int64_t positions = geometry->run_steps;
  for (int32_t d = 0; d < geometry->outer_dims; ++d) positions *= geometry->outer[d].size;
  geometry->positions = positions;
  const bool rows = geometry->walk == Walk::kRows;
  const int64_t read = rows ? geometry->channels : geometry->width;
  const int64_t bytes_each =
      read * geometry->element * std::min(geometry->run.size, geometry->run_step);
  const int64_t positions_each = divide_up(kBlockBytes, std::max<int64_t>(bytes_each, 1));
  geometry->blocks = std::clamp<int64_t>(positions / positions_each, 1, kMaxBlocks);
  geometry->columns = 1;
  if (!rows && geometry->blocks < 8) {
    const int64_t bytes = positions * bytes_each;
    geometry->columns = std::clamp<int64_t>(bytes / geometry->blocks / kBlockBytes, 1,
                                            std::max<int64_t>(geometry->width, 1));
  }
}

}  // namespace

neq_status check_tensors(const neq_tensor* dy, int32_t dim, const neq_tensor* packed) noexcept {
  neq_status status = check_tensor("dy", dy);
  if (status == NEQ_OK) status = check_tensor("packed", packed);
  if (status == NEQ_OK) status = check_pair(*dy, dim, *packed);
  return status;
}

neq_status check_index(const int32_t* index, int64_t width, int64_t channels,
                       int64_t* count) noexcept {
  if (width > 0 && !index) {
    return fail(NEQ_INVALID_ARGUMENT, "index: expected %lld channels, got a null pointer",
                static_cast<long long>(width));
  }
  int64_t active = 0;
  while (active < width && index[active] >= 0) ++active;
  for (int64_t i = 0; i < width; ++i) {
    const bool right =
        i >= active ? index[i] == -1 : index[i] < channels && (i == 0 || index[i] > index[i - 1]);
    if (!right) {
      return fail(NEQ_INVALID_ARGUMENT,
                  "index: expected rising channels in [0, %lld), then only -1, got %d in place %lld"
                  "; sort it, once each",
                  static_cast<long long>(channels), index[i], static_cast<long long>(i));
    }
  }
  *count = active;
  return NEQ_OK;
}

Geometry understand(const neq_tensor& dy, int32_t dim, const neq_tensor& packed) noexcept {
  Geometry geometry{};
  geometry.dtype = static_cast<neq_dtype>(dy.dtype);
  const int64_t element = geometry.element = element_bytes(dy.dtype);
  geometry.channels = dy.size[dim];
  geometry.width = packed.size[dim];
  geometry.channel = {dy.size[dim], dy.stride[dim] * element, packed.stride[dim] * element};
  geometry.outer_dims = collapse(dy, dim, packed, element, geometry.outer);
  geometry.run = {1, element, element};
  geometry.run_step = kPlaneRun;

  const Dim* last = geometry.outer_dims ? &geometry.outer[geometry.outer_dims - 1] : nullptr;
  if (last && last->source == element && last->target == element) {
    geometry.walk = Walk::kPlanes;
  } else if (geometry.channel.source == element && geometry.channel.target == element) {
    geometry.walk = Walk::kRows;
  } else {
    geometry.walk = Walk::kStrided;
    geometry.run_step = kStridedRun;
  }
  if (last && geometry.walk != Walk::kRows) {
    geometry.run = *last;
    --geometry.outer_dims;
  }
  geometry.run_steps = divide_up(geometry.run.size, geometry.run_step);
  cut_into_blocks(&geometry);
  return geometry;
}

}  // namespace neq::pack
