// The kernels of row_sgd and row_adamw, and their launches: as few as the tables of parameters
// allow that fit into a kernel's arguments. No thread needs another one's element: no barriers, no
// order.
#pragma once

#include "cuda/common.cuh"
#include "row_step.h"
#include "tensor.h"

#define NEQ_INLINE __host__ __device__ __forceinline__
#include "row_step_formula.h"

namespace neq::rows {

inline constexpr int kThreads = 256;
inline constexpr int kUnitsEach = 4;  // per thread; few, so that small layers spread out too
inline constexpr int64_t kUnitsPerBlock = int64_t{kThreads} * kUnitsEach;
inline constexpr size_t kTableBytes = 4000;  // of the 4 KiB of arguments

// One parameter whose rows, or columns, lie alike in all tensors. A unit is what one thread moves
// at once: `lanes` neighbouring elements of a row, or one element of a column.
template <class Sum>
struct Entry {
  Rounded<Sum> numbers;
  char* data[NEQ_ROW_TENSORS];
  const int32_t* index;  // null: row i is neuron i
  int64_t units;
  int64_t inner;   // units from one row (column walk: line) to the next
  int64_t stride;  // elements from one row (column walk: line) to the next
  int32_t neurons;
  int32_t columns;
};

// One parameter as its strides have it.
template <class Sum>
struct StridedEntry {
  Rounded<Sum> numbers;
  char* data[NEQ_ROW_TENSORS];
  const int32_t* index;
  int64_t units;
  int64_t inner;
  int64_t size[NEQ_MAX_DIMS];
  int64_t stride[NEQ_ROW_TENSORS][NEQ_MAX_DIMS];
  int32_t neurons;
  int32_t ndim;
  int32_t dim;  // -1: no dimension counts neurons, all are stepped
};

template <class Entry>
struct Table {
  static constexpr int kEntries =
      static_cast<int>((kTableBytes - sizeof(int64_t)) / (sizeof(Entry) + sizeof(int32_t)));
  int32_t count;
  int32_t end_block[kEntries];  // blocks of the entries so far
  Entry entries[kEntries];
};

struct Split {
  int64_t quotient;
  int64_t remainder;
};

// In 32 bits where they do: a 64-bit division costs as much as the memory it is about.
__device__ __forceinline__ Split split(int64_t value, int64_t by) {
  if ((value | by) >> 32 == 0) {
    const auto small = static_cast<uint32_t>(value), divisor = static_cast<uint32_t>(by);
    return {small / divisor, small % divisor};
  }
  return {value / by, value % by};
}

// The entry this block works on, and its first unit there.
template <class Entry>
__device__ __forceinline__ const Entry& entry_of(const Table<Entry>& table, int64_t* first) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  int32_t found = 0;
  while (block >= table.end_block[found]) ++found;
  const int32_t before = found ? table.end_block[found - 1] : 0;
  *first = (block - before) * kUnitsPerBlock + threadIdx.x;
  return table.entries[found];
}

template <Formula kFormula, class T, int kLanes>
__device__ __forceinline__ void step_unit(const Rounded<cuda::Sum<T>>& numbers, char* const* data,
                                          const int64_t* offset) {
  using Lanes = cuda::Vector<T, kLanes>;
  constexpr int kCount = kTensorsOf<kFormula>;
  Lanes lanes[kCount];
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    const char* const at = data[t] + offset[t] * static_cast<int64_t>(sizeof(T));
    lanes[t] = t == 1 ? cuda::load_once<Lanes>(at) : cuda::load<Lanes>(at);
  }
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    cuda::Sum<T> x[kCount];
#pragma unroll
    for (int t = 0; t < kCount; ++t) x[t] = cuda::to_sum(lanes[t].at[k]);
    apply<kFormula>(numbers, x);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      if (t != 1) lanes[t].at[k] = cuda::from_sum<T>(x[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    if (t != 1) cuda::store(data[t] + offset[t] * static_cast<int64_t>(sizeof(T)), lanes[t]);
  }
}

template <Formula kFormula, class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    step_rows(const __grid_constant__ Table<Entry<cuda::Sum<T>>> table) {
  int64_t unit = 0;
  const auto& entry = entry_of(table, &unit);
  for (int k = 0; k < kUnitsEach && unit < entry.units; ++k, unit += kThreads) {
    const Split at = split(unit, entry.inner);
    const int64_t row = entry.columns ? at.remainder : at.quotient;
    const int64_t neuron = entry.index ? entry.index[row] : row;
    if (neuron < 0 || neuron >= entry.neurons) continue;  // padding
    const int64_t here = entry.columns ? at.quotient * entry.stride + neuron
                                       : neuron * entry.stride + at.remainder * kLanes;
    int64_t offset[NEQ_ROW_TENSORS];
#pragma unroll
    for (int t = 0; t < NEQ_ROW_TENSORS; ++t) offset[t] = here;
    step_unit<kFormula, T, kLanes>(entry.numbers, entry.data, offset);
  }
}

template <Formula kFormula, class T>
__global__ void __launch_bounds__(kThreads)
    step_strided(const __grid_constant__ Table<StridedEntry<cuda::Sum<T>>> table) {
  int64_t unit = 0;
  const auto& entry = entry_of(table, &unit);
  for (int k = 0; k < kUnitsEach && unit < entry.units; ++k, unit += kThreads) {
    const Split at = split(unit, entry.inner);
    const int64_t neuron = entry.index ? entry.index[at.quotient] : at.quotient;
    if (entry.dim >= 0 && (neuron < 0 || neuron >= entry.neurons)) continue;
    int64_t offset[NEQ_ROW_TENSORS] = {};
    int64_t left = at.remainder;
    for (int d = entry.ndim - 1; d >= 0; --d) {
      const Split next = d == entry.dim ? Split{left, neuron} : split(left, entry.size[d]);
      left = next.quotient;
#pragma unroll
      for (int t = 0; t < kTensorsOf<kFormula>; ++t) {
        offset[t] += next.remainder * entry.stride[t][d];
      }
    }
    step_unit<kFormula, T, 1>(entry.numbers, entry.data, offset);
  }
}

// Elements of a row that one instruction can move in every tensor.
inline int64_t lanes_of(const neq_row_parameter& parameter, const Layout& layout, int tensors) {
  if (layout.walk != Walk::kRows) return 1;
  const int64_t element = element_bytes(parameter.tensor[0].dtype);
  uint64_t bits = static_cast<uint64_t>(layout.run * element);
  if (layout.rows > 1 || !layout.all) bits |= static_cast<uint64_t>(layout.stride * element);
  for (int t = 0; t < tensors; ++t) bits |= reinterpret_cast<uintptr_t>(parameter.tensor[t].data);
  return cuda::common_alignment(bits) == 16 ? 16 / element : 1;
}

// Collects entries and launches the kernel when the table is full, and in the end.
template <class Entry>
class Launches {
 public:
  Launches(void (*kernel)(Table<Entry>), void* stream) : kernel_(kernel), stream_(stream) {}

  neq_status add(const Entry& entry) {
    const int64_t blocks = divide_up(entry.units, kUnitsPerBlock);
    if (blocks > INT32_MAX) {
      return fail(NEQ_UNSUPPORTED, "parameters: expected at most 2^41 elements each, got more");
    }
    const bool full = table_.count == Table<Entry>::kEntries || blocks_ + blocks > INT32_MAX;
    const neq_status status = full ? flush() : NEQ_OK;
    blocks_ += blocks;
    table_.entries[table_.count] = entry;
    table_.end_block[table_.count++] = static_cast<int32_t>(blocks_);
    return status;
  }

  neq_status flush() {
    const auto blocks = static_cast<unsigned>(blocks_);
    blocks_ = 0;
    const neq_status status = cuda::launch(kernel_, {blocks, kThreads}, stream_, table_);
    table_.count = 0;
    return status;
  }

 private:
  void (*kernel_)(Table<Entry>);
  void* stream_;
  int64_t blocks_ = 0;
  Table<Entry> table_{};
};

template <class Sum>
Entry<Sum> entry_for(const neq_row_parameter& parameter, const Layout& layout,
                     const Numbers& numbers, int64_t lanes, int tensors) {
  const bool columns = layout.walk == Walk::kColumns;
  Entry<Sum> entry{Rounded<Sum>(numbers), {}, nullptr, 0, 0, 0, 0, columns};
  for (int t = 0; t < tensors; ++t) entry.data[t] = static_cast<char*>(parameter.tensor[t].data);
  entry.index = layout.all ? nullptr : parameter.index;
  entry.neurons = layout.all ? 1 : static_cast<int32_t>(parameter.tensor[0].size[parameter.dim]);
  entry.units = layout.rows * (layout.run / lanes);
  entry.inner = columns ? layout.rows : layout.run / lanes;
  entry.stride = layout.stride;
  return entry;
}

template <class Sum>
StridedEntry<Sum> strided_entry_for(const neq_row_parameter& parameter, const Layout& layout,
                                    const Numbers& numbers, int tensors) {
  const neq_tensor& first = parameter.tensor[0];
  StridedEntry<Sum> entry{Rounded<Sum>(numbers), {}, nullptr, 0, 0, {}, {}, 0, 0, 0};
  entry.index = layout.all ? nullptr : parameter.index;
  entry.units = layout.rows * layout.run;
  entry.inner = layout.run;
  entry.ndim = first.ndim;
  entry.dim = layout.all ? -1 : parameter.dim;
  entry.neurons = layout.all ? 1 : static_cast<int32_t>(first.size[parameter.dim]);
  for (int d = 0; d < first.ndim; ++d) entry.size[d] = first.size[d];
  for (int t = 0; t < tensors; ++t) {
    entry.data[t] = static_cast<char*>(parameter.tensor[t].data);
    for (int d = 0; d < first.ndim; ++d) entry.stride[t][d] = parameter.tensor[t].stride[d];
  }
  return entry;
}

// All parameters of element type T.
template <Formula kFormula, class T, class Options>
neq_status step_all(const Options& options, const neq_row_parameter* parameters, int64_t count,
                    int32_t dtype, void* stream) {
  using Sum = cuda::Sum<T>;
  constexpr int kCount = kTensorsOf<kFormula>;
  constexpr int kLanes = static_cast<int>(16 / sizeof(T));
  Launches<Entry<Sum>> wide(step_rows<kFormula, T, kLanes>, stream);
  Launches<Entry<Sum>> narrow(step_rows<kFormula, T, 1>, stream);
  Launches<StridedEntry<Sum>> strided(step_strided<kFormula, T>, stream);
  for (int64_t i = 0; i < count; ++i) {
    const neq_row_parameter& parameter = parameters[i];
    if (parameter.tensor[0].dtype != dtype) continue;
    const Layout layout = understand(parameter, kFormula);
    if (layout.rows == 0) continue;
    const Numbers numbers = numbers_of(options, parameter);
    const int64_t lanes = lanes_of(parameter, layout, kCount);
    neq_status status;
    if (layout.walk == Walk::kStrided) {
      status = strided.add(strided_entry_for<Sum>(parameter, layout, numbers, kCount));
    } else {
      auto& launches = lanes > 1 ? wide : narrow;
      status = launches.add(entry_for<Sum>(parameter, layout, numbers, lanes, kCount));
    }
    if (status != NEQ_OK) return status;
  }
  neq_status status = wide.flush();
  if (status == NEQ_OK) status = narrow.flush();
  if (status == NEQ_OK) status = strided.flush();
  return status;
}

template <Formula kFormula, class Options>
neq_status step_formula(const Options& options, const neq_row_parameter* parameters, int64_t count,
                        void* stream) {
  bool present[NEQ_BF16 + 1] = {};
  for (int64_t i = 0; i < count; ++i) present[parameters[i].tensor[0].dtype] = true;
  for (int32_t dtype = NEQ_F32; dtype <= NEQ_BF16; ++dtype) {
    if (!present[dtype]) continue;
    const neq_status status = cuda::with_element(dtype, [&](auto element) {
      using T = decltype(element);
      return step_all<kFormula, T>(options, parameters, count, dtype, stream);
    });
    if (status != NEQ_OK) return status;
  }
  return NEQ_OK;
}

}  // namespace neq::rows
