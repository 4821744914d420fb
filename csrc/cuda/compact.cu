// compact: list[k] = the k-th channel c with mask[c], or with |velocity[c]| >= epsilon, then -1;
// count = how many there are.  For all layers of a model, a block each, in one launch for every
// 128.
//
// A block goes through its layer 256 channels at a time: a ballot tells each thread how many active
// ones come before it in its warp, shared memory how many in the warps before. The work is so
// small that only launches count.
#include "compact.h"

#include <algorithm>

#include "cuda/common.cuh"

namespace neq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLayers = 128;

struct Layer {
  const void* data;
  int64_t start;  // of its list
  int32_t size;
};

// By value in the kernel's parameters: no copy to the device, none to wait for.
struct Layers {
  int32_t* counts;
  int32_t* lists;
  double epsilon;
  Layer at[kLayers];
};
static_assert(sizeof(Layers) <= 4096);

template <class T>
__device__ __forceinline__ bool active(const Layer& layer, int64_t channel, double epsilon) {
  const T value = static_cast<const T*>(layer.data)[channel];
  if constexpr (std::is_same_v<T, uint8_t>) {
    return value != 0;
  } else {
    return compact::moves(value, epsilon);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) compact_layers(const __grid_constant__ Layers layers) {
  NEQ_SHARED(int32_t, found, [kWarps]);
  const Layer& layer = layers.at[blockIdx.x];
  int32_t* list = layers.lists + layer.start;
  const int warp = threadIdx.x / 32;
  const unsigned before = (1u << threadIdx.x % 32) - 1;
  int32_t count = 0;
  for (int64_t first = 0; first < layer.size; first += kThreads) {
    const int64_t channel = first + threadIdx.x;
    const bool mine = channel < layer.size && active<T>(layer, channel, layers.epsilon);
    const unsigned votes = __ballot_sync(kWholeWarp, mine);
    if (threadIdx.x % 32 == 0) found[warp] = __popc(votes);
    __syncthreads();
    int32_t place = count + __popc(votes & before);
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += found[w];
      count += found[w];
    }
    if (mine) list[place] = static_cast<int32_t>(channel);
    __syncthreads();
  }
  for (int64_t k = count + static_cast<int64_t>(threadIdx.x); k < layer.size; k += kThreads) {
    list[k] = -1;
  }
  if (threadIdx.x == 0) layers.counts[blockIdx.x] = count;
}

neq_status launch_kind(int32_t kind, const Layers& layers, int64_t count, void* stream) {
  const Grid grid = {static_cast<unsigned>(count), kThreads};
  switch (kind) {
    case NEQ_VELOCITY_F32:
      return launch(compact_layers<float>, grid, stream, layers);
    case NEQ_VELOCITY_F64:
      return launch(compact_layers<double>, grid, stream, layers);
    default:
      return launch(compact_layers<uint8_t>, grid, stream, layers);
  }
}

}  // namespace
}  // namespace neq::cuda

neq_status neq_compact_cuda(const neq_choice* layers, int64_t count, int32_t kind, double epsilon,
                            int32_t* lists, void* stream) {
  using namespace neq::cuda;
  neq_status status = neq::compact::check(layers, count, kind, epsilon, lists);
  int64_t start = 0;
  for (int64_t first = 0; status == NEQ_OK && first < count; first += kLayers) {
    const int64_t here = std::min<int64_t>(kLayers, count - first);
    Layers table = {lists + first, lists + count, epsilon, {}};
    for (int64_t l = 0; l < here; ++l) {
      const neq_choice& layer = layers[first + l];
      table.at[l] = {layer.data, start, static_cast<int32_t>(layer.size)};
      start += layer.size;
    }
    status = launch_kind(kind, table, here, stream);
  }
  return status;
}
