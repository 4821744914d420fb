// neq_channel_moments_cpu against a loop nest, in buffers of exactly the right size so that the
// address sanitizer sees every step beside them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "check.h"

namespace {

struct Layout {
  std::vector<int64_t> sizes;
  int32_t dim;
  std::vector<int64_t> order;  // dimensions from the outermost in memory to the innermost
  int64_t step;                // elements between neighbours of the innermost
};

// A tensor that owns its memory, whose values are small whole numbers: every dtype holds them, and
// every sum of them is exact.
struct Owned {
  neq_tensor tensor{};
  std::vector<uint8_t> memory;
  std::vector<double> values;  // by position in memory

  Owned(const Layout& layout, neq_dtype dtype, std::mt19937& random) {
    tensor.dtype = dtype;
    tensor.ndim = static_cast<int32_t>(layout.sizes.size());
    std::copy(layout.sizes.begin(), layout.sizes.end(), tensor.size);
    int64_t stride = layout.step;
    int64_t last = 0;
    int64_t count = 1;
    for (auto d = layout.order.rbegin(); d != layout.order.rend(); ++d) {
      tensor.stride[*d] = stride;
      stride *= std::max<int64_t>(tensor.size[*d], 1);
      last += (tensor.size[*d] - 1) * tensor.stride[*d];
      count *= tensor.size[*d];
    }
    values.resize(count ? last + 1 : 0);
    memory.resize(values.size() * bytes());
    std::uniform_int_distribution<int> small(-9, 9);
    for (size_t i = 0; i < values.size(); ++i) put(i, small(random));
    tensor.data = memory.data();
  }

  size_t bytes() const { return tensor.dtype == NEQ_F64 ? 8 : tensor.dtype == NEQ_F32 ? 4 : 2; }

  void put(size_t i, int value) {
    values[i] = value;
    const auto single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    uint16_t narrow = static_cast<uint16_t>(bits >> 16);  // exact: at most four digits
    if (tensor.dtype == NEQ_F16) {
      const uint32_t magnitude = bits & 0x7fffffffu;
      narrow = static_cast<uint16_t>((bits >> 16 & 0x8000u) |
                                     (magnitude ? (magnitude - 0x38000000u) >> 13 : 0));
    }
    const double wide = value;
    const void* from = tensor.dtype == NEQ_F64   ? static_cast<const void*>(&wide)
                       : tensor.dtype == NEQ_F32 ? static_cast<const void*>(&single)
                                                 : static_cast<const void*>(&narrow);
    std::memcpy(memory.data() + i * bytes(), from, bytes());
  }

  double at(const std::vector<int64_t>& place) const {
    int64_t offset = 0;
    for (int32_t d = 0; d < tensor.ndim; ++d) offset += place[d] * tensor.stride[d];
    return values[offset];
  }
};

std::vector<double> expected(const Owned& a, const Owned& b, int32_t dim, bool per_sample) {
  const neq_tensor& shape = a.tensor;
  const int64_t samples = per_sample ? shape.size[0] : 1;
  const int64_t rows = samples * shape.size[dim];
  std::vector<double> moments(3 * rows, 0.0);
  std::vector<int64_t> place(shape.ndim, 0);
  if (std::find(shape.size, shape.size + shape.ndim, 0) != shape.size + shape.ndim) return moments;
  for (bool more = true; more;) {
    const int64_t row = (per_sample ? place[0] * shape.size[dim] : 0) + place[dim];
    const double left = a.at(place);
    const double right = b.at(place);
    moments[row] += left * right;
    moments[row + rows] += left * left;
    moments[row + 2 * rows] += right * right;
    more = false;
    for (int32_t d = shape.ndim - 1; d >= 0 && !more; --d) {
      more = ++place[d] < shape.size[d];
      if (!more) place[d] = 0;
    }
  }
  return moments;
}

std::vector<double> run(const Owned& a, const Owned& b, int32_t dim, bool per_sample, size_t count,
                        const neq_parallel* parallel) {
  const int64_t bytes = neq_channel_moments_cpu_scratch(&a.tensor, &b.tensor, dim, per_sample);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes, 0xff);
  std::vector<double> moments(count, NAN);
  CHECK(neq_channel_moments_cpu(&a.tensor, &b.tensor, dim, per_sample, moments.data(),
                                {scratch.data(), bytes}, parallel) == NEQ_OK);
  return moments;
}

void check_layouts() {
  std::mt19937 random(7);
  const std::vector<Layout> layouts = {
      {{300, 64}, 1, {0, 1}, 1},              // [tokens, C]
      {{1000, 3}, 1, {0, 1}, 1},              // narrow rows, folded
      {{1500, 96}, 1, {0, 1}, 1},             // several blocks
      {{50, 700}, 1, {0, 1}, 1},              // wide rows
      {{37, 19}, 1, {0, 1}, 2},               // every other element
      {{37, 19}, 1, {1, 0}, 1},               // transposed
      {{3, 17, 5, 7}, 1, {0, 1, 2, 3}, 1},    // NCHW
      {{3, 33, 15, 7}, 1, {0, 2, 3, 1}, 1},   // channels_last
      {{1, 3, 190, 90}, 1, {0, 1, 2, 3}, 1},  // planes longer than a piece
      {{2, 19, 3, 4, 5}, 1, {0, 2, 3, 4, 1}, 1},
      {{2, 300, 9}, 2, {0, 1, 2}, 1},
      {{0, 8, 3}, 1, {0, 1, 2}, 1},
      {{4, 0, 3}, 1, {0, 1, 2}, 1},
      {{4, 8, 0}, 1, {0, 1, 2}, 1},
      {{9}, 0, {0}, 1},
      {{1, 1}, 1, {0, 1}, 1},
  };
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  const std::pair<neq_dtype, neq_dtype> dtypes[] = {{NEQ_F32, NEQ_F32}, {NEQ_F64, NEQ_F64},
                                                    {NEQ_F16, NEQ_F16}, {NEQ_BF16, NEQ_BF16},
                                                    {NEQ_F16, NEQ_F32}, {NEQ_F64, NEQ_BF16}};
  for (const Layout& layout : layouts) {
    for (const auto& [left, right] : dtypes) {
      const Owned a(layout, left, random);
      const Owned b(layout, right, random);
      for (const bool per_sample : {false, true}) {
        if (per_sample && layout.dim == 0) continue;
        const std::vector<double> exact = expected(a, b, layout.dim, per_sample);
        with_each_isa([&] {
          for (const neq_parallel* parallel : {&backward, &threads}) {
            CHECK(run(a, b, layout.dim, per_sample, exact.size(), parallel) == exact);
          }
          CHECK(run(a, b, layout.dim, per_sample, exact.size(), nullptr) == exact);
        });
      }
    }
  }
}

void check_refusals() {
  std::vector<float> data(12, 1.0f);
  std::vector<double> out(32, 5.0);
  std::vector<double> room(1024);
  const neq_scratch scratch = {room.data(), static_cast<int64_t>(room.size() * sizeof(double))};
  const neq_tensor a = {data.data(), NEQ_F32, 2, {3, 4}, {4, 1}};
  const auto call = [&](const neq_tensor* left, const neq_tensor* right, int32_t dim,
                        int32_t per_sample, neq_scratch memory) {
    return neq_channel_moments_cpu(left, right, dim, per_sample, out.data(), memory, nullptr);
  };
  const auto changed = [&](auto change) {
    neq_tensor tensor = a;
    change(tensor);
    return tensor;
  };
  CHECK_REFUSED(call(nullptr, &a, 1, 0, scratch), "a: expected a tensor");
  CHECK_REFUSED(call(&a, nullptr, 1, 0, scratch), "b: expected a tensor");
  CHECK_REFUSED(call(&a, &a, 2, 0, scratch), "dim: expected 0 to 1");
  CHECK_REFUSED(call(&a, &a, -1, 0, scratch), "dim: expected 0 to 1");
  CHECK_REFUSED(call(&a, &a, 0, 1, scratch), "per_sample: expected samples in dimension 0");
  CHECK_REFUSED(neq_channel_moments_cpu(&a, &a, 1, 0, nullptr, scratch, nullptr),
                "moments: expected memory");
  const neq_tensor no_data = changed([](neq_tensor& t) { t.data = nullptr; });
  CHECK_REFUSED(call(&a, &no_data, 1, 0, scratch), "b: expected data");
  const neq_tensor odd = changed([](neq_tensor& t) { t.dtype = 9; });
  CHECK_REFUSED(call(&odd, &a, 1, 0, scratch), "a: expected dtype");
  const neq_tensor more = changed([](neq_tensor& t) { t.ndim = 9; });
  CHECK_REFUSED(call(&more, &a, 1, 0, scratch), "a: expected 1 to 8 dimensions");
  const neq_tensor fewer = changed([](neq_tensor& t) { t.ndim = 1; });
  CHECK_REFUSED(call(&a, &fewer, 1, 0, scratch), "b: expected a's 2 dimensions");
  const neq_tensor shorter = changed([](neq_tensor& t) { t.size[0] = 2; });
  CHECK_REFUSED(call(&a, &shorter, 1, 0, scratch), "b: expected a's size 3 in dimension 0, got 2");
  const neq_tensor negative = changed([](neq_tensor& t) { t.size[1] = -4; });
  CHECK_REFUSED(call(&negative, &a, 1, 0, scratch), "at least 0");
  const neq_tensor huge = changed([](neq_tensor& t) { t.stride[0] = INT64_MAX / 8; });
  CHECK_REFUSED(call(&huge, &a, 1, 0, scratch), "fit 64 bits");
  const neq_tensor endless = changed([](neq_tensor& t) {
    t.size[0] = int64_t{1} << 57;
    t.stride[0] = t.stride[1] = 0;
  });
  CHECK_REFUSED(call(&endless, &endless, 1, 0, scratch), "fewer than 2^54 elements");
  const neq_tensor empty = changed([](neq_tensor& t) {
    t.size[0] = 0;
    t.size[1] = int64_t{1} << 60;
    t.stride[0] = t.stride[1] = 0;
  });
  CHECK_REFUSED(call(&empty, &empty, 1, 0, scratch), "fewer than 2^54 elements");
  CHECK(neq_channel_moments_cpu_scratch(&a, &shorter, 1, 0) == -1);
  CHECK(std::count(out.begin(), out.end(), 5.0) == 32);

  std::vector<float> many(4000 * 96);
  const neq_tensor large = {many.data(), NEQ_F32, 2, {4000, 96}, {96, 1}};
  CHECK(neq_channel_moments_cpu_scratch(&large, &large, 1, 0) > 0);
  CHECK_REFUSED(call(&large, &large, 1, 0, {nullptr, 0}), "scratch: expected");
  CHECK_REFUSED(call(&large, &large, 1, 0, {reinterpret_cast<char*>(room.data()) + 1, 1 << 20}),
                "aligned to 8");
}

}  // namespace

int main() {
  check_layouts();
  check_refusals();
  std::puts("channel_moments: ok");
}
