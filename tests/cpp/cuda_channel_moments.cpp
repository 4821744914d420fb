// neq_channel_moments_cuda on the emulated device against a loop nest; the same bits in every order
// of threads and blocks, on a small device and on a large one.
#include "cuda/common.cuh"
#include "moments_cases.h"

namespace {

namespace emulation = neq::emulation;

std::vector<double> run(const Owned& a, const Owned& b, int32_t dim, bool per_sample,
                        size_t count) {
  const int64_t bytes = neq_channel_moments_cuda_scratch(&a.tensor, &b.tensor, dim, per_sample);
  CHECK(bytes >= 0);
  std::vector<uint8_t> scratch(bytes, 0xff);
  std::vector<double> moments(count, NAN);
  CHECK(neq_channel_moments_cuda(&a.tensor, &b.tensor, dim, per_sample, moments.data(),
                                 {scratch.data(), bytes}, nullptr) == NEQ_OK);
  return moments;
}

void check_case(const Owned& a, const Owned& b, int32_t dim, bool per_sample) {
  const std::vector<double> exact = expected(a, b, dim, per_sample);
  std::vector<double> moments;
  CHECK(emulation::same_in_every_order([&] {
    moments = run(a, b, dim, per_sample, exact.size());
    const auto* first = reinterpret_cast<const uint8_t*>(moments.data());
    return std::vector<uint8_t>(first, first + moments.size() * sizeof(double));
  }));
  CHECK(moments == exact);
}

void check_layouts() {
  std::mt19937 random(7);
  // Small ones: an emulated thread takes a microsecond to switch to.
  const std::vector<Layout> layouts = {
      {{70, 48}, 1, {0, 1}, 1},             // [tokens, C], whole vectors
      {{40, 19}, 1, {0, 1}, 1},             // and not
      {{4, 300}, 1, {0, 1}, 1},             // more than one tile of channels
      {{37, 5}, 1, {0, 1}, 2},              // every other element
      {{37, 19}, 1, {1, 0}, 1},             // transposed
      {{3, 7, 4, 4}, 1, {0, 1, 2, 3}, 1},   // NCHW, planes of whole vectors
      {{3, 7, 5, 7}, 1, {0, 1, 2, 3}, 1},   // and not
      {{5, 6, 2, 2}, 1, {0, 1, 2, 3}, 1},   // planes shorter than a warp
      {{2, 13, 5, 7}, 1, {0, 2, 3, 1}, 1},  // channels_last
      {{2, 30, 9}, 2, {0, 1, 2}, 1},
      {{0, 8, 3}, 1, {0, 1, 2}, 1},
      {{4, 0, 3}, 1, {0, 1, 2}, 1},
      {{4, 8, 0}, 1, {0, 1, 2}, 1},
      {{9}, 0, {0}, 1},
      {{1, 1}, 1, {0, 1}, 1},
  };
  for (const Layout& layout : layouts) {
    for (const auto& [left, right] : kDtypes) {
      for (const int64_t skipped : {0, 1}) {
        const Owned a(layout, left, random, skipped);
        const Owned b(layout, right, random);
        for (const bool per_sample : {false, true}) {
          const bool few = layout.dim != 0 && layout.sizes[0] <= 5;
          if (!per_sample || few) check_case(a, b, layout.dim, per_sample);
        }
      }
    }
  }
  // Planes, and rows, that are not neighbours of the next ones.
  for (const auto& [left, right] : kDtypes) {
    Owned a({{2, 6, 4, 16}, 1, {0, 1, 2, 3}, 1}, left, random);
    Owned b({{2, 6, 4, 16}, 1, {0, 1, 2, 3}, 1}, right, random);
    a.tensor.size[2] = b.tensor.size[2] = 3;
    check_case(a, b, 1, false);
    check_case(a, b, 3, true);
    a.tensor.size[3] = b.tensor.size[3] = 13;
    check_case(a, b, 1, true);
    check_case(a, b, 3, false);
  }
}

// Long enough for several parts, which must not depend on the device.
void check_parts() {
  std::mt19937 random(11);
  for (const Layout& layout :
       {Layout{{1500, 48}, 1, {0, 1}, 1}, Layout{{1, 4, 70, 100}, 1, {0, 1, 2, 3}, 1},
        Layout{{90, 3, 70}, 1, {0, 1, 2}, 2}}) {
    const Owned a(layout, NEQ_F32, random);
    const Owned b(layout, NEQ_F32, random);
    CHECK(neq_channel_moments_cuda_scratch(&a.tensor, &b.tensor, 1, 0) > 0);
    const std::vector<double> exact = expected(a, b, 1, false);
    for (const int multiprocessors : {1, 132}) {
      emulation::Device device;
      device.multiprocessors = multiprocessors;
      emulation::set_device(device);
      check_case(a, b, 1, false);
      CHECK(run(a, b, 1, false, exact.size()) == exact);
    }
  }
}

void check_refusals() {
  std::vector<float> data(12, 1.0f);
  std::vector<double> out(12, 5.0);
  const neq_tensor a = {data.data(), NEQ_F32, 2, {3, 4}, {4, 1}};
  const auto call = [&](const neq_tensor* left, int32_t dim, int32_t per_sample, double* moments) {
    return neq_channel_moments_cuda(left, &a, dim, per_sample, moments, {nullptr, 0}, nullptr);
  };
  CHECK_REFUSED(call(nullptr, 1, 0, out.data()), "a: expected a tensor");
  CHECK_REFUSED(call(&a, 2, 0, out.data()), "dim: expected 0 to 1");
  CHECK_REFUSED(call(&a, 0, 1, out.data()), "per_sample: expected samples");
  CHECK_REFUSED(call(&a, 1, 0, nullptr), "moments: expected memory");
  CHECK(neq_channel_moments_cuda_scratch(&a, nullptr, 1, 0) == -1);
  CHECK(std::count(out.begin(), out.end(), 5.0) == 12);
  emulation::fail_next_launch(cudaErrorInvalidConfiguration);
  CHECK(call(&a, 1, 0, out.data()) == NEQ_CUDA_ERROR);
  std::vector<float> many(40000 * 96);
  const neq_tensor large = {many.data(), NEQ_F32, 2, {40000, 96}, {96, 1}};
  CHECK(neq_channel_moments_cuda_scratch(&large, &large, 1, 0) > 0);
  CHECK_REFUSED(neq_channel_moments_cuda(&large, &large, 1, 0, out.data(), {nullptr, 0}, nullptr),
                "scratch: expected");
}

}  // namespace

int main() {
  check_layouts();
  check_parts();
  check_refusals();
  std::puts("cuda_channel_moments: ok");
}
