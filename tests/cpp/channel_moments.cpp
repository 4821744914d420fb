// neq_channel_moments_cpu against a loop nest, in buffers of exactly the right size so that the
// address sanitizer sees every step beside them.
#include "moments_cases.h"

namespace {

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
  const neq_parallel backward = backwards();
  const neq_parallel threads = four_threads();
  for (const Layout& layout : kLayouts) {
    for (const auto& [left, right] : kDtypes) {
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
  // No samples, of rows so many that they would be folded.
  const neq_tensor no_samples = {nullptr, NEQ_F32, 3, {0, 3000, 3}, {9001, 3, 1}};
  std::vector<double> sums(9, 1.0), folded(4096);
  CHECK(neq_channel_moments_cpu(&no_samples, &no_samples, 2, 0, sums.data(), {folded.data(), 32768},
                                nullptr) == NEQ_OK);
  CHECK(sums[0] == 0 && sums[8] == 0);
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
