#include "channel_moments_geometry.h"

#include <algorithm>

#include "status.h"

namespace neq::moments {
namespace {

constexpr int64_t kMaxCount = int64_t{1} << 54;  // sizes in bytes, partial sums included, fit
constexpr int64_t kBlockBytes = 128 << 10;
constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kFewBlocks = 8;
constexpr int64_t kPieceBytes = 32 << 10;  // of both tensors: what stays in the first-level cache
constexpr int64_t kRunPiece = 8192;
constexpr int64_t kStridedPiece = 64;
constexpr int64_t kMinRows = 8;
constexpr int64_t kMinColumns = 64;
constexpr int64_t kNarrow = 256;

// Sorts the dimensions that are summed by their strides and merges what lies together. Expanded
// ones, with stride 0, go outside.
int32_t collapse(const neq_tensor& a, const neq_tensor& b, int32_t dim, int32_t first,
                 Dim* dims) noexcept {
  const int64_t left = element_bytes(a.dtype);
  const int64_t right = element_bytes(b.dtype);
  int32_t found = 0;
  for (int32_t d = first; d < a.ndim; ++d) {
    if (d != dim && a.size[d] != 1) {
      dims[found++] = {a.size[d], {a.stride[d] * left, b.stride[d] * right}};
    }
  }
  std::sort(dims, dims + found, [](const Dim& one, const Dim& other) {
    const auto far = [](int64_t step) { return step == 0 ? INT64_MAX : step; };
    return one.step.a != other.step.a ? far(one.step.a) > far(other.step.a)
                                      : far(one.step.b) > far(other.step.b);
  });
  int32_t kept = 0;
  for (int32_t d = 0; d < found; ++d) {
    const Dim& inner = dims[d];
    Dim* outer = kept ? &dims[kept - 1] : nullptr;
    if (outer && outer->step.a == inner.step.a * inner.size &&
        outer->step.b == inner.step.b * inner.size) {
      *outer = {outer->size * inner.size, inner.step};
    } else {
      dims[kept++] = inner;
    }
  }
  return kept;
}

bool neighbours(Step step, const Geometry& geometry) noexcept {
  return step.a == element_bytes(geometry.a) && step.b == element_bytes(geometry.b);
}

void choose_loop(Geometry* geometry) noexcept {
  const int64_t pair = element_bytes(geometry->a) + element_bytes(geometry->b);
  if (neighbours(geometry->inner.step, *geometry)) {
    geometry->walk = Walk::kRuns;
    geometry->piece = kRunPiece;
  } else if (neighbours(geometry->channel.step, *geometry)) {
    geometry->walk = Walk::kRows;
    const int64_t row = std::max<int64_t>(geometry->channel.size * pair, 1);
    geometry->piece = std::max(kMinRows, kPieceBytes / row / kMinRows * kMinRows);
  } else {
    geometry->walk = Walk::kStrided;
    geometry->piece = kStridedPiece;
  }
}

// Narrow rows, side by side in memory, are walked as fewer wide ones: few channels fill no vectors,
// and the memory is asked for ahead by whole rows.
void fold(Geometry* geometry) noexcept {
  const Dim& channel = geometry->channel;
  const Dim& inner = geometry->inner;
  const bool together = geometry->walk == Walk::kRows &&
                        inner.step.a == channel.size * channel.step.a &&
                        inner.step.b == channel.size * channel.step.b;
  if (!together || channel.size == 0 || channel.size > kNarrow / 2) return;
  int64_t rows = divide_up(kNarrow, channel.size);
  if (rows > kMinRows) rows = divide_up(rows, kMinRows) * kMinRows;
  if (inner.size < kMinRows * rows) return;
  geometry->fold = rows;
  geometry->piece = std::max(kMinRows, geometry->piece / rows);
}

void cut_into_blocks(Geometry* geometry) noexcept {
  const int64_t pair = element_bytes(geometry->a) + element_bytes(geometry->b);
  const int64_t inner = geometry->inner.size / geometry->fold;
  geometry->pieces = divide_up(inner, geometry->piece);
  geometry->places = geometry->pieces;
  for (int32_t d = 0; d < geometry->outer_dims; ++d) geometry->places *= geometry->outer[d].size;
  const int64_t bytes_each =
      std::max<int64_t>(geometry->width() * pair * std::min(inner, geometry->piece), 1);
  // A block must be worth its partial sums.
  const int64_t sums_bytes = geometry->width() * 3 * static_cast<int64_t>(sizeof(double));
  const int64_t block_bytes = std::max(kBlockBytes, 16 * sums_bytes);
  geometry->blocks =
      std::clamp<int64_t>(geometry->places / divide_up(block_bytes, bytes_each), 1, kMaxBlocks);
  geometry->columns = 1;
  if (geometry->blocks < kFewBlocks && geometry->sample.size < kFewBlocks && geometry->fold == 1) {
    const int64_t bytes = geometry->places * bytes_each / geometry->blocks;
    geometry->columns = std::clamp<int64_t>(
        bytes / kBlockBytes, 1, std::max<int64_t>(geometry->channel.size / kMinColumns, 1));
  }
}

}  // namespace

neq_status check(const neq_tensor* a, const neq_tensor* b, int32_t dim,
                 int32_t per_sample) noexcept {
  neq_status status = check_tensor("a", a);
  if (status == NEQ_OK) status = check_tensor("b", b);
  if (status != NEQ_OK) return status;
  if (b->ndim != a->ndim) {
    return fail(NEQ_INVALID_ARGUMENT, "b: expected a's %d dimensions, got %d", a->ndim, b->ndim);
  }
  for (int32_t d = 0; d < a->ndim; ++d) {
    if (b->size[d] != a->size[d]) {
      return fail(NEQ_INVALID_ARGUMENT, "b: expected a's size %lld in dimension %d, got %lld",
                  static_cast<long long>(a->size[d]), d, static_cast<long long>(b->size[d]));
    }
  }
  if (dim < 0 || dim >= a->ndim) {
    return fail(NEQ_INVALID_ARGUMENT, "dim: expected 0 to %d, a dimension of a, got %d",
                a->ndim - 1, dim);
  }
  if (per_sample && dim == 0) {
    return fail(NEQ_INVALID_ARGUMENT,
                "per_sample: expected samples in dimension 0, got dim=0: there are the channels");
  }
  int64_t count = kMaxCount;
  for (int32_t d = 0; d < a->ndim; ++d) count /= std::max<int64_t>(a->size[d], 1);
  if (count == 0) {
    return fail(NEQ_UNSUPPORTED, "a: expected fewer than 2^54 elements; pass it in parts");
  }
  return NEQ_OK;
}

Geometry understand(const neq_tensor& a, const neq_tensor& b, int32_t dim,
                    bool per_sample) noexcept {
  Geometry geometry{};
  geometry.a = static_cast<neq_dtype>(a.dtype);
  geometry.b = static_cast<neq_dtype>(b.dtype);
  const int64_t left = element_bytes(a.dtype);
  const int64_t right = element_bytes(b.dtype);
  const auto whole = [&](int32_t d) {
    return Dim{a.size[d], {a.stride[d] * left, b.stride[d] * right}};
  };
  geometry.channel = whole(dim);
  geometry.sample = per_sample ? whole(0) : Dim{1, {0, 0}};
  geometry.outer_dims = collapse(a, b, dim, per_sample ? 1 : 0, geometry.outer);
  geometry.inner = {1, {0, 0}};
  if (geometry.outer_dims) geometry.inner = geometry.outer[--geometry.outer_dims];
  geometry.fold = 1;
  choose_loop(&geometry);
  fold(&geometry);
  cut_into_blocks(&geometry);
  return geometry;
}

}  // namespace neq::moments
