// neq_pack_channels_cpu against a loop nest, in buffers of exactly the right size so that the
// address sanitizer sees every step beside them.
#include "pack_cases.h"

namespace {

Result pack(const neq_tensor& dy, int32_t dim, const std::vector<int32_t>& index, neq_tensor packed,
            const neq_parallel* parallel, bool with_bias = true) {
  Result result{memory(packed),
                std::vector<uint8_t>(index.size() * neq::element_bytes(dy.dtype), 0xff)};
  packed.data = result.packed.data();
  void* bias = with_bias ? result.bias.data() : nullptr;
  const int64_t bytes = neq_pack_channels_cpu_scratch(&dy, dim, &packed, bias);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes);
  CHECK(neq_pack_channels_cpu(&dy, dim, index.data(), &packed, bias, {scratch.data(), bytes},
                              parallel) == NEQ_OK);
  return result;
}

void check_layout(const Layout& layout, neq_dtype dtype, std::mt19937& random) {
  const int64_t channels = layout.sizes[layout.dim];
  neq_tensor dy = dy_shape(layout, dtype);
  std::vector<uint8_t> data = memory(dy);
  fill(dtype, &data, random);
  dy.data = data.data();
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const int64_t count : {int64_t{0}, int64_t{1}, channels / 2, channels - 1, channels}) {
    if (count < 0 || count > channels) continue;
    for (const int64_t padding : {0, 3}) {
      const std::vector<int32_t> index = random_index(channels, count, padding, random);
      const neq_tensor packed = shape(layout, dtype, count + padding, 1);
      const Result alone = pack(dy, layout.dim, index, packed, nullptr);
      check_packed(dy, layout.dim, index, packed, alone);
      CHECK(pack(dy, layout.dim, index, packed, nullptr, false).packed == alone.packed);
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
  with_each_isa([&] {
    for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
      for (const Layout& layout : pack_layouts()) check_layout(layout, dtype, random);
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
  const neq_tensor none = changed(dy, [](neq_tensor& t) { t.size[0] = 0; });
  const neq_tensor wide = changed(packed, [](neq_tensor& t) {
    t.size[0] = 0;
    t.size[1] = INT64_MAX / 8;
  });
  CHECK_REFUSED(call(&none, 1, index, &wide, scratch), "packed: expected at most");
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
