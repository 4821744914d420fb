// neq_pack_channels_cpu against a loop nest, in buffers of exactly the right size so that the
// address sanitizer sees every step beside them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"

namespace {

struct Layout {
  std::vector<int64_t> sizes;
  int32_t dim;
  std::vector<int64_t> order;  // dimensions from the outermost in memory to the innermost
  int64_t step;                // elements between neighbours of the innermost
};

int64_t bytes_of(int32_t dtype) { return dtype == NEQ_F64 ? 8 : dtype == NEQ_F32 ? 4 : 2; }

neq_tensor shape(const Layout& layout, neq_dtype dtype, int64_t channels, int64_t step) {
  neq_tensor tensor{};
  tensor.dtype = dtype;
  tensor.ndim = static_cast<int32_t>(layout.sizes.size());
  std::copy(layout.sizes.begin(), layout.sizes.end(), tensor.size);
  tensor.size[layout.dim] = channels;
  int64_t stride = step;
  for (auto d = layout.order.rbegin(); d != layout.order.rend(); ++d) {
    tensor.stride[*d] = stride;
    stride *= std::max<int64_t>(tensor.size[*d], 1);
  }
  return tensor;
}

int64_t numel(const neq_tensor& tensor) {
  int64_t count = 1;
  for (int32_t d = 0; d < tensor.ndim; ++d) count *= tensor.size[d];
  return count;
}

// Exactly the bytes from the first to the last element.
std::vector<uint8_t> memory(const neq_tensor& tensor) {
  if (numel(tensor) == 0) return {};
  int64_t last = 0;
  for (int32_t d = 0; d < tensor.ndim; ++d) last += (tensor.size[d] - 1) * tensor.stride[d];
  return std::vector<uint8_t>((last + 1) * bytes_of(tensor.dtype), 0xff);
}

int64_t offset(const neq_tensor& tensor, int64_t ordinal, int32_t dim, int64_t* channel) {
  int64_t at = 0;
  for (int32_t d = tensor.ndim - 1; d >= 0; --d) {
    const int64_t here = ordinal % tensor.size[d];
    ordinal /= tensor.size[d];
    if (d == dim) *channel = here;
    at += d == dim ? 0 : here * tensor.stride[d];
  }
  return at;
}

struct Result {
  std::vector<uint8_t> packed;
  std::vector<uint8_t> bias;
};

Result pack(const neq_tensor& dy, int32_t dim, const std::vector<int32_t>& index, neq_tensor packed,
            const neq_parallel* parallel) {
  Result result{memory(packed), std::vector<uint8_t>(index.size() * bytes_of(dy.dtype), 0xff)};
  packed.data = result.packed.data();
  void* bias = result.bias.data();
  const int64_t bytes = neq_pack_channels_cpu_scratch(&dy, dim, &packed, bias);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes);
  CHECK(neq_pack_channels_cpu(&dy, dim, index.data(), &packed, bias, {scratch.data(), bytes},
                              parallel) == NEQ_OK);
  return result;
}

void check_packed(const neq_tensor& dy, int32_t dim, const std::vector<int32_t>& index,
                  const neq_tensor& packed, const Result& result) {
  const int64_t element = bytes_of(dy.dtype);
  const auto* source = static_cast<const uint8_t*>(dy.data);
  std::vector<double> sums(index.size(), 0.0);
  const std::vector<uint8_t> zero(element, 0);
  for (int64_t k = 0; k < numel(packed); ++k) {
    int64_t i = 0;
    int64_t ignored = 0;
    const int64_t to = offset(packed, k, dim, &i) + i * packed.stride[dim];
    neq_tensor widened = dy;
    widened.size[dim] = packed.size[dim];
    const int64_t from = offset(widened, k, dim, &ignored) + index[i] * dy.stride[dim];
    const uint8_t* expected = index[i] < 0 ? zero.data() : source + from * element;
    CHECK(std::memcmp(result.packed.data() + to * element, expected, element) == 0);
    if (dy.dtype == NEQ_F32 && index[i] >= 0) {
      float value;
      std::memcpy(&value, expected, sizeof value);
      sums[i] += value;
    }
  }
  for (size_t i = 0; dy.dtype == NEQ_F32 && i < index.size(); ++i) {
    float bias;
    std::memcpy(&bias, result.bias.data() + i * sizeof bias, sizeof bias);
    CHECK(std::fabs(bias - sums[i]) <= 1e-4);
  }
}

void check_layout(const Layout& layout, neq_dtype dtype, std::mt19937& random) {
  const int64_t channels = layout.sizes[layout.dim];
  neq_tensor dy = shape(layout, dtype, channels, layout.step);
  std::vector<uint8_t> data = memory(dy);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (size_t at = 0; at + 4 <= data.size(); at += 4) {
    const float value = uniform(random);
    std::memcpy(data.data() + at, &value, sizeof value);
  }
  dy.data = data.data();
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const int64_t count : {int64_t{0}, int64_t{1}, channels / 2, channels}) {
    if (count > channels) continue;
    for (const int64_t padding : {0, 3}) {
      std::vector<int32_t> index(channels);
      for (int32_t c = 0; c < channels; ++c) index[c] = c;
      std::shuffle(index.begin(), index.end(), random);
      index.resize(count);
      std::sort(index.begin(), index.end());
      index.insert(index.end(), padding, -1);
      const neq_tensor packed = shape(layout, dtype, count + padding, 1);
      const Result alone = pack(dy, layout.dim, index, packed, nullptr);
      check_packed(dy, layout.dim, index, packed, alone);
      for (const neq_parallel* parallel : {&backward, &threads}) {
        const Result shared = pack(dy, layout.dim, index, packed, parallel);
        CHECK(shared.packed == alone.packed);
        CHECK(shared.bias == alone.bias);
      }
    }
  }
}

void check_layouts() {
  std::mt19937 random(7);
  const std::vector<Layout> layouts = {
      {{300, 64}, 1, {0, 1}, 1},  // [tokens, C]
      {{1000, 3}, 1, {0, 1}, 1},  // fewer channels than lanes
      {{90, 11}, 1, {0, 1}, 1},   // than those of AVX-512
      {{50, 200}, 1, {0, 1}, 1},
      {{37, 19}, 1, {0, 1}, 2},              // every other element
      {{37, 19}, 1, {1, 0}, 1},              // transposed
      {{3, 17, 5, 7}, 1, {0, 1, 2, 3}, 1},   // NCHW
      {{3, 33, 5, 7}, 1, {0, 2, 3, 1}, 1},   // channels_last
      {{2, 5, 90, 90}, 1, {0, 1, 2, 3}, 1},  // planes longer than a run
      {{2, 19, 3, 4, 5}, 1, {0, 2, 3, 4, 1}, 1},
      {{2, 300, 9}, 2, {0, 1, 2}, 1},
      {{0, 8, 3}, 1, {0, 1, 2}, 1},
      {{4, 0, 3}, 1, {0, 1, 2}, 1},
      {{9}, 0, {0}, 1},
  };
  with_each_isa([&] {
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      for (const Layout& layout : layouts) check_layout(layout, dtype, random);
    }
  });
}

void check_refusals() {
  std::vector<float> data(12, 1.0f);
  std::vector<float> out(12, 5.0f);
  std::vector<double> room(1024);
  const neq_scratch scratch = {room.data(), static_cast<int64_t>(room.size() * sizeof(double))};
  const neq_tensor dy = {data.data(), NEQ_F32, 2, {3, 4}, {4, 1}};
  const neq_tensor packed = {out.data(), NEQ_F32, 2, {3, 2}, {2, 1}};
  const int32_t index[] = {1, 3};
  const auto call = [&](const neq_tensor* from, int32_t dim, const int32_t* list,
                        const neq_tensor* to, neq_scratch memory) {
    std::vector<float> bias(4);
    return neq_pack_channels_cpu(from, dim, list, to, bias.data(), memory, nullptr);
  };
  const auto changed = [](neq_tensor tensor, auto change) {
    change(tensor);
    return tensor;
  };
  CHECK_REFUSED(call(nullptr, 1, index, &packed, scratch), "dy: expected a tensor");
  CHECK_REFUSED(call(&dy, 1, index, nullptr, scratch), "packed: expected a tensor");
  CHECK_REFUSED(call(&dy, 2, index, &packed, scratch), "dim: expected 0 to 1");
  CHECK_REFUSED(call(&dy, -1, index, &packed, scratch), "dim: expected 0 to 1");
  CHECK_REFUSED(call(&dy, 1, nullptr, &packed, scratch), "index: expected 2 channels");
  CHECK_REFUSED(call(&dy, 1, index, &packed, {nullptr, 0}), "scratch: expected");
  CHECK_REFUSED(call(&dy, 1, index, &packed, {reinterpret_cast<char*>(room.data()) + 1, 4096}),
                "aligned to 8");
  for (const auto& wrong :
       std::vector<std::vector<int32_t>>{{1, 1}, {3, 1}, {1, 4}, {-1, 1}, {1, -2}}) {
    CHECK_REFUSED(call(&dy, 1, wrong.data(), &packed, scratch), "index: expected rising channels");
  }
  const neq_tensor no_data = changed(dy, [](neq_tensor& t) { t.data = nullptr; });
  CHECK_REFUSED(call(&no_data, 1, index, &packed, scratch), "dy: expected data");
  const neq_tensor odd = changed(dy, [](neq_tensor& t) { t.dtype = 9; });
  CHECK_REFUSED(call(&odd, 1, index, &packed, scratch), "dy: expected dtype");
  const neq_tensor scalar = changed(dy, [](neq_tensor& t) { t.ndim = 0; });
  CHECK_REFUSED(call(&scalar, 1, index, &packed, scratch), "dy: expected 1 to 8 dimensions");
  const neq_tensor negative = changed(dy, [](neq_tensor& t) { t.stride[0] = -4; });
  CHECK_REFUSED(call(&negative, 1, index, &packed, scratch), "at least 0");
  const neq_tensor huge = changed(dy, [](neq_tensor& t) { t.size[0] = INT64_MAX / 2; });
  CHECK_REFUSED(call(&huge, 1, index, &packed, scratch), "fit 64 bits");
  const neq_tensor other = changed(packed, [](neq_tensor& t) { t.dtype = NEQ_BF16; });
  CHECK_REFUSED(call(&dy, 1, index, &other, scratch), "packed: expected dy's dtype");
  const neq_tensor short_of = changed(packed, [](neq_tensor& t) { t.size[0] = 2; });
  CHECK_REFUSED(call(&dy, 1, index, &short_of, scratch), "packed: expected dy's size 3");
  const neq_tensor expanded = changed(packed, [](neq_tensor& t) { t.stride[0] = 0; });
  CHECK_REFUSED(call(&dy, 1, index, &expanded, scratch), "memory of its own");
  CHECK(neq_pack_channels_cpu_scratch(&dy, 5, &packed, nullptr) == -1);
  CHECK(std::count(out.begin(), out.end(), 5.0f) == 12);
}

}  // namespace

int main() {
  check_layouts();
  check_refusals();
  std::puts("pack_channels: ok");
}
