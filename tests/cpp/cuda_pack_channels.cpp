// neq_pack_channels_cuda on the emulated device against a loop nest; the same bytes in every order
// of threads and blocks, on a small device and on a large one.
#include <limits>

#include "cuda/pack_channels.cuh"
#include "pack_cases.h"

namespace {

namespace emulation = neq::emulation;

struct Sides {
  neq_tensor dy;
  neq_tensor packed;  // without data
  int32_t dim;
};

Result pack(const Sides& sides, const std::vector<int32_t>& index, bool bias, int64_t skipped) {
  const int64_t element = neq::element_bytes(sides.dy.dtype);
  Result result{memory(sides.packed, skipped),
                std::vector<uint8_t>(bias ? index.size() * element : 0, 0xff)};
  neq_tensor packed = sides.packed;
  packed.data = result.packed.data() + (result.packed.empty() ? 0 : skipped * element);
  void* const sums = bias ? result.bias.data() : nullptr;
  const int64_t bytes = neq_pack_channels_cuda_scratch(&sides.dy, sides.dim, &packed, sums);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes, 0xff);
  CHECK(neq_pack_channels_cuda(&sides.dy, sides.dim, index.data(), &packed, sums,
                               {scratch.data(), bytes}, nullptr) == NEQ_OK);
  result.packed.erase(result.packed.begin(),
                      result.packed.begin() + (result.packed.empty() ? 0 : skipped * element));
  return result;
}

void check_case(const Sides& sides, const std::vector<int32_t>& index, int64_t skipped) {
  Result both;
  CHECK(emulation::same_in_every_order([&] {
    both = pack(sides, index, true, skipped);
    std::vector<uint8_t> all = both.packed;
    all.insert(all.end(), both.bias.begin(), both.bias.end());
    return all;
  }));
  check_packed(sides.dy, sides.dim, index, sides.packed, both);
  CHECK(pack(sides, index, false, skipped).packed == both.packed);
}

// `skipped` elements in front of both tensors put them where wide loads must not start.
void check_layout(const Layout& layout, neq_dtype dtype, int64_t skipped, std::mt19937& random) {
  const int64_t channels = layout.sizes[layout.dim];
  neq_tensor dy = dy_shape(layout, dtype);
  std::vector<uint8_t> data = memory(dy, skipped);
  fill(dtype, &data, random);
  dy.data = data.data() + (data.empty() ? 0 : skipped * neq::element_bytes(dtype));
  for (const int64_t count : {int64_t{0}, int64_t{1}, channels / 2, channels}) {
    if (count > channels) continue;
    for (const int64_t padding : {0, 3}) {
      if (padding > 0 && count == channels) continue;
      const std::vector<int32_t> index = random_index(channels, count, padding, random);
      check_case({dy, shape(layout, dtype, count + padding, 1), layout.dim}, index, skipped);
    }
  }
}

void check_layouts() {
  std::mt19937 random(7);
  for (const neq_dtype dtype : {NEQ_F32, NEQ_F64, NEQ_F16, NEQ_BF16}) {
    for (const Layout& layout : pack_layouts()) check_layout(layout, dtype, 0, random);
  }
  for (const int multiprocessors : {1, 132}) {
    emulation::set_device({multiprocessors});
    for (const Layout& layout : pack_layouts()) check_layout(layout, NEQ_BF16, 0, random);
  }
  emulation::set_device({});
  for (const int64_t skipped : {1, 2}) {
    for (const Layout& layout : pack_layouts()) check_layout(layout, NEQ_F16, skipped, random);
  }
  for (const Layout& layout : pack_layouts()) check_layout(layout, NEQ_F32, 2, random);
}

// What is not a channel is padding; nobody can check a list that lies on the device.
void check_index_out_of_range() {
  std::vector<float> data(5 * 4 * 6);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const std::vector<int32_t> index = {-7, 2, 4, INT32_MAX, INT32_MIN};
  for (const bool planes : {true, false}) {
    const Layout layout = {{5, 4, 6}, planes ? 1 : 2, {0, 1, 2}, 1};
    neq_tensor dy = dy_shape(layout, NEQ_F32);
    dy.data = data.data();
    const int64_t channels = planes ? 4 : 6;
    const neq_tensor packed = shape(layout, NEQ_F32, 5, 1);
    const Result result = pack({dy, packed, layout.dim}, index, true, 0);
    std::vector<int32_t> meant = index;
    for (int32_t& place : meant) place = place >= channels ? -1 : place;
    check_packed(dy, layout.dim, meant, packed, result);
  }
}

// A running sum in fp32 would be off by thousands of eps here.
void check_long_sums() {
  const std::vector<Layout> layouts = {{{100000, 2}, 1, {0, 1}, 1},
                                       {{1, 2, 100000}, 1, {0, 1, 2}, 1},
                                       {{50000, 2, 2}, 1, {0, 1, 2}, 1}};
  for (const Layout& layout : layouts) {
    for (const int multiprocessors : {1, 132}) {
      emulation::set_device({multiprocessors});
      neq_tensor dy = dy_shape(layout, NEQ_F32);
      std::vector<float> data(numel(dy), 0.1f);
      dy.data = data.data();
      const Result result = pack({dy, dy, layout.dim}, {0, 1}, true, 0);
      const double exact = 1e5 * static_cast<double>(0.1f);
      for (const int i : {0, 4}) {
        CHECK(std::fabs(value_at(NEQ_F32, result.bias.data() + i) - exact) <= 2e-7 * exact);
      }
    }
  }
}

// Past 2^31 elements, where nothing can be allocated, the arithmetic alone.
void check_offsets() {
  using neq::cuda::Divisor;
  const int64_t largest = std::numeric_limits<int64_t>::max();
  std::mt19937_64 random(3);
  std::vector<int64_t> numbers = {1,
                                  2,
                                  3,
                                  5,
                                  7,
                                  255,
                                  256,
                                  257,
                                  (int64_t{1} << 31) - 1,
                                  int64_t{1} << 31,
                                  (int64_t{1} << 31) + 1,
                                  int64_t{1} << 62,
                                  (int64_t{1} << 62) + 1,
                                  largest - 1,
                                  largest};
  for (int i = 0; i < 200; ++i)
    numbers.push_back(static_cast<int64_t>(random() >> (1 + i % 60)) | 1);
  for (const int64_t d : numbers) {
    for (const int64_t n : numbers) {
      for (const int64_t near : {n - 1, n, d - 1, n / d * d - 1, n / d * d}) {
        if (near >= 0) CHECK(Divisor(d).divide(near) == near / d);
      }
    }
  }
  neq::cuda::Outer outer = {{{70000, int64_t{9} << 32, 3}, {50000, int64_t{3} << 16, 70000 * 3}},
                            {Divisor(70000), Divisor(50000)},
                            2};
  const int64_t ordinal = int64_t{69999} * 50000 + 49998;
  const neq::cuda::Offsets at = neq::cuda::offsets_of<false>(outer, ordinal);
  CHECK(at.source == 69999 * (int64_t{9} << 32) + 49998 * (int64_t{3} << 16));
  CHECK(at.target == 69999 * 3 + int64_t{49998} * 210000);
  neq::cuda::Steps<false> divides(outer, ordinal, ordinal + 10, 1);
  divides.advance();
  CHECK(divides.target() == at.target + 210000);
  outer.count = 1;
  neq::cuda::Steps<true> adds(outer, 60000, 70000, 5);
  for (int i = 0; i < 1999; ++i) adds.advance();
  CHECK(adds.source() == 69995 * (int64_t{9} << 32));
}

void check_refusals() {
  std::vector<float> data(12, 1.0f);
  std::vector<float> out(12, 5.0f);
  std::vector<float> bias(4);
  const neq_tensor dy = {data.data(), NEQ_F32, 2, {3, 4}, {4, 1}};
  const neq_tensor packed = {out.data(), NEQ_F32, 2, {3, 2}, {2, 1}};
  const int32_t index[] = {1, 3};
  const auto call = [&](const neq_tensor* from, int32_t dim, const int32_t* list,
                        const neq_tensor* to) {
    return neq_pack_channels_cuda(from, dim, list, to, bias.data(), {nullptr, 0}, nullptr);
  };
  CHECK_REFUSED(call(nullptr, 1, index, &packed), "dy: expected a tensor");
  CHECK_REFUSED(call(&dy, 1, index, nullptr), "packed: expected a tensor");
  CHECK_REFUSED(call(&dy, 2, index, &packed), "dim: expected 0 to 1");
  CHECK_REFUSED(call(&dy, 1, nullptr, &packed), "index: expected 2 channels, got a null pointer");
  neq_tensor odd = dy;
  odd.data = reinterpret_cast<char*>(data.data()) + 2;
  CHECK_REFUSED(call(&odd, 1, index, &packed), "dy: expected an address aligned to its elements");
  neq_tensor huge = dy;
  huge.size[0] = INT64_MAX / 2;
  CHECK_REFUSED(call(&huge, 1, index, &packed), "fit 64 bits");
  CHECK(neq_pack_channels_cuda_scratch(&dy, 5, &packed, nullptr) == -1);
  emulation::fail_next_launch(cudaErrorInvalidConfiguration);
  CHECK(call(&dy, 1, index, &packed) == NEQ_CUDA_ERROR);
  CHECK(std::count(out.begin(), out.end(), 5.0f) == 12);

  const neq_tensor tall = {data.data(), NEQ_F32, 2, {4096, 2}, {0, 1}};
  std::vector<float> rows(8192);
  const neq_tensor all = {rows.data(), NEQ_F32, 2, {4096, 2}, {2, 1}};
  CHECK(neq_pack_channels_cuda_scratch(&tall, 1, &all, bias.data()) > 0);
  CHECK_REFUSED(call(&tall, 1, index, &all), "scratch: expected");
  const int64_t before = emulation::launches();
  const neq_tensor none = {nullptr, NEQ_F32, 2, {3, 0}, {0, 1}};
  CHECK(neq_pack_channels_cuda(&dy, 1, nullptr, &none, nullptr, {nullptr, 0}, nullptr) == NEQ_OK);
  CHECK(emulation::launches() == before);
}

}  // namespace

int main() {
  check_offsets();
  check_layouts();
  check_index_out_of_range();
  check_long_sums();
  check_refusals();
  std::puts("cuda_pack_channels: ok");
}
