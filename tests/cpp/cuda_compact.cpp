// neq_compact_cuda on the emulated device against a loop; the same lists in every order of threads.
#include "compact_cases.h"
#include "cuda/common.cuh"

namespace {

namespace emulation = neq::emulation;

neq_status compact(const neq_choice* layers, int64_t count, int32_t kind, double epsilon,
                   int32_t* lists) {
  int64_t total = count;
  for (int64_t l = 0; l < count; ++l) total += layers[l].size;
  neq_status status = NEQ_OK;
  CHECK(emulation::same_in_every_order([&] {
    std::fill(lists, lists + total, 12345);
    status = neq_compact_cuda(layers, count, kind, epsilon, lists, nullptr);
    const auto* first = reinterpret_cast<const uint8_t*>(lists);
    return std::vector<uint8_t>(first, first + total * sizeof(int32_t));
  }));
  return status;
}

neq_status in_one_order(const neq_choice* layers, int64_t count, int32_t kind, double epsilon,
                        int32_t* lists) {
  return neq_compact_cuda(layers, count, kind, epsilon, lists, nullptr);
}

void check_many_layers() {
  std::mt19937 random(7);
  std::bernoulli_distribution flip(0.5);
  std::vector<std::vector<uint8_t>> layers(300, std::vector<uint8_t>(9));
  for (auto& layer : layers) {
    for (uint8_t& flag : layer) flag = flip(random) ? 1 : 0;
  }
  const int64_t before = emulation::launches();
  check_lists(in_one_order, layers, NEQ_MASK, 0, [](uint8_t flag) { return flag != 0; });
  CHECK(emulation::launches() == before + 3);
}

void check_refusals() {
  const uint8_t mask[3] = {1, 0, 1};
  std::vector<int32_t> lists(4, 7);
  const neq_choice layer = {mask, 3};
  const neq_choice wrong = {nullptr, 3};
  CHECK(neq_compact_cuda(nullptr, 0, NEQ_MASK, 0, nullptr, nullptr) == NEQ_OK);
  CHECK_REFUSED(neq_compact_cuda(&wrong, 1, NEQ_MASK, 0, lists.data(), nullptr), "expected data");
  CHECK_REFUSED(neq_compact_cuda(&layer, 1, 7, 0, lists.data(), nullptr), "kind: expected");
  CHECK_REFUSED(neq_compact_cuda(&layer, 1, NEQ_MASK, 0, nullptr, nullptr), "expected memory");
  emulation::fail_next_launch(cudaErrorInvalidConfiguration);
  CHECK(neq_compact_cuda(&layer, 1, NEQ_MASK, 0, lists.data(), nullptr) == NEQ_CUDA_ERROR);
}

}  // namespace

int main() {
  check_masks(compact);
  check_velocities<float>(compact, NEQ_VELOCITY_F32);
  check_velocities<double>(compact, NEQ_VELOCITY_F64);
  check_many_layers();
  check_refusals();
  std::puts("cuda_compact: ok");
}
