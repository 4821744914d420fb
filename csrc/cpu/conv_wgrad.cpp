// conv_wgrad: dw[o, c, r, s] = sum over n, p, q of dy[n, o, p, q] * x[n, c, u, v] for active o,
//   u = p * stride + r * dilation - padding, likewise v, and db[o] = sum of dy[n, o, p, q],
// for few active channels, of which vendor kernels compute whole vectors.
//
// Two ways: conv_wgrad_planes.cpp, and conv_wgrad_lanes.cpp for channels_last. The work is cut into
// tasks by the sizes alone, and their sums are added in order: the number of threads changes no
// bit.
#include <algorithm>
#include <cstring>

#include "conv_wgrad_plan.h"
#include "element.h"
#include "pack_channels_geometry.h"

namespace neq::conv {
namespace {

// Where the row of x for a weight starts.
void find_offsets(const Call& call) noexcept {
  const Convolution& c = call.convolution;
  for (int64_t tap = 0; tap < c.taps(); ++tap) {
    const int64_t r = tap / c.axis[1].kernel * c.axis[0].dilation;
    const int64_t s = tap % c.axis[1].kernel * c.axis[1].dilation;
    const int64_t phase = r % c.axis[0].stride * call.steps[1].phases + s % c.axis[1].stride;
    const int64_t offset = r / c.axis[0].stride * call.steps[1].pitch + s / c.axis[1].stride;
    call.offsets[tap] = (phase * call.column + offset) * call.scalar;
  }
}

// One thread runs the tasks of a range one after the other, all in the first one's tile.
void run_tasks(void* arg, int64_t begin, int64_t end) {
  const Call& call = *static_cast<const Call*>(arg);
  for (int64_t task = begin; task < end; ++task) {
    call.run(call, task, call.tiles + begin * call.tile_bytes);
  }
}

// The weights of an output channel as loops, the innermost through memory in order where that can
// be: how many there are, and from one to the next in a row of sums and in dw.
struct Loop {
  int64_t count;
  int64_t from;
  int64_t to;
};

struct Loops {
  Loop loop[3];  // the innermost first
  bool dense;    // whether the weights of an output channel fill their part of dw

  static Loops of(const Call& call) noexcept {
    const Convolution& c = call.convolution;
    const int64_t wide = c.axis[1].kernel;
    Loops made = {{{wide, call.per_tap, c.dw.axis[1]},
                   {c.axis[0].kernel, call.per_tap * wide, c.dw.axis[0]},
                   {c.inputs, call.per_channel, c.dw.channel}},
                  true};
    const auto nearer = [](const Loop& a, const Loop& b) {
      return a.count == 1 || b.count == 1 ? a.count > b.count : a.to < b.to;
    };
    std::sort(made.loop, made.loop + 3, nearer);
    for (int outer = 2; outer > 0; --outer) made.join(outer);
    int64_t dense = 1;
    for (const Loop& loop : made.loop) {
      made.dense &= loop.count == 1 || loop.to == dense;
      dense *= loop.count;
    }
    return made;
  }

 private:
  // One loop of two, where the outer one goes on where the inner one ends.
  void join(int outer) noexcept {
    Loop& a = loop[outer - 1];
    Loop& b = loop[outer];
    if (b.count == 1 || b.from != a.count * a.from || b.to != a.count * a.to) return;
    a.count *= b.count;
    b.count = 1;
  }
};

void run_staging(void* arg, int64_t begin, int64_t end) {
  stage_rows(*static_cast<const Call*>(arg), begin, end);
}

struct Outputs {
  const Call* call;
  Loops loops;
  char* dw;
  char* db;
};

// A thread's worth of numbers to copy; waking another costs as much as some thousands.
constexpr int64_t kCopied = 1 << 15;
// Outputs that fill a cache line in every type.
constexpr int64_t kOutputsAtOnce = 32;
// Sums of neighbours, so many at a time that a first cache keeps them.
constexpr int64_t kSumsAtOnce = 1024;

template <class Element>
class Store {
  using Scalar = typename Element::Sum;
  using Storage = typename Element::Storage;

 public:
  explicit Store(const Outputs& out) noexcept : out_(out), call_(*out.call) {}

  // Output channels up to `end`, of which the active ones are known by their places in the list.
  void rows(int64_t begin, int64_t end) const noexcept {
    const int32_t* const last = call_.index + call_.count;
    const int32_t* place = std::lower_bound(call_.index, last, begin);
    const Scalar* sums[kOutputsAtOnce];
    // Outputs that are neighbours in memory share its lines: a weight of some of them at a time.
    const bool neighbours = call_.convolution.dw.batch == 1;
    const int64_t most = neighbours ? kOutputsAtOnce : 1;
    for (int64_t output = begin; output < end; output += most) {
      const int64_t some = std::min(most, end - output);
      for (int64_t o = 0; o < some; ++o) {
        const bool active = place != last && *place == output + o;
        sums[o] = active ? partial(place - call_.index) : nullptr;
        if (out_.db) store_bias(output + o, active ? place - call_.index : -1);
        place += active;
      }
      neighbours ? columns(output, some, sums) : row(output, sums[0]);
    }
  }

 private:
  void store_bias(int64_t output, int64_t place) const noexcept {
    double sum = 0;
    for (int64_t block = 0; place >= 0 && block < call_.blocks; ++block) {
      sum += call_.bias(block, place);
    }
    reinterpret_cast<Storage*>(out_.db)[output] = Element::store(sum);
  }

  void columns(int64_t output, int64_t count, const Scalar* const* sums) const noexcept {
    const Loop* const loop = out_.loops.loop;
    int64_t active[kOutputsAtOnce];
    int64_t active_count = 0;
    for (int64_t o = 0; o < count; ++o) {
      if (sums[o]) active[active_count++] = o;
    }
    Storage* const dw = reinterpret_cast<Storage*>(out_.dw) + output;
    for (int64_t outer = 0; outer < loop[2].count; ++outer) {
      for (int64_t middle = 0; middle < loop[1].count; ++middle) {
        for (int64_t inner = 0; inner < loop[0].count; ++inner) {
          const int64_t from = outer * loop[2].from + middle * loop[1].from + inner * loop[0].from;
          Storage* const to = dw + outer * loop[2].to + middle * loop[1].to + inner * loop[0].to;
          std::memset(to, 0, count * sizeof(Storage));
          for (int64_t k = 0; k < active_count; ++k) {
            to[active[k]] = Element::store(total(sums[active[k]] + from));
          }
        }
      }
    }
  }

  const Scalar* partial(int64_t place) const noexcept {
    return reinterpret_cast<const Scalar*>(call_.sums(0, place, 0));
  }

  // Zeros, without sums.
  void row(int64_t output, const Scalar* sums) const noexcept {
    const Loop* const loop = out_.loops.loop;
    const int64_t weights = loop[0].count * loop[1].count * loop[2].count;
    if (weights == 0) return;
    Storage* const to = reinterpret_cast<Storage*>(out_.dw) + output * call_.convolution.dw.batch;
    if (!sums && out_.loops.dense) {
      std::memset(to, 0, weights * sizeof(Storage));
      return;
    }
    for (int64_t outer = 0; outer < loop[2].count; ++outer) {
      for (int64_t middle = 0; middle < loop[1].count; ++middle) {
        const int64_t from = outer * loop[2].from + middle * loop[1].from;
        inner(to + outer * loop[2].to + middle * loop[1].to, sums ? sums + from : nullptr);
      }
    }
  }

  void inner(Storage* to, const Scalar* sums) const noexcept {
    const Loop& loop = out_.loops.loop[0];
    if (!sums) {
      for (int64_t k = 0; k < loop.count; ++k) to[k * loop.to] = Element::store(0);
    } else if (loop.from == 1 && loop.to == 1) {
      neighbours(to, sums, loop.count);
    } else {
      for (int64_t k = 0; k < loop.count; ++k) {
        to[k * loop.to] = Element::store(total(sums + k * loop.from));
      }
    }
  }

  Scalar total(const Scalar* sum) const noexcept {
    Scalar all = 0;
    for (int64_t block = 0; block < call_.blocks; ++block) all += sum[block * step()];
    return all;
  }

  void neighbours(Storage* to, const Scalar* sums, int64_t count) const noexcept {
    Scalar all[kSumsAtOnce];
    for (int64_t first = 0; first < count; first += kSumsAtOnce) {
      const int64_t some = std::min(kSumsAtOnce, count - first);
      const Scalar* from = sums + first;
      for (int64_t k = 0; k < some; ++k) all[k] = from[k];
      for (int64_t block = 1; block < call_.blocks; ++block) {
        from += step();
        for (int64_t k = 0; k < some; ++k) all[k] += from[k];
      }
      for (int64_t k = 0; k < some; ++k) to[first + k] = Element::store(all[k]);
    }
  }

  // From one block's sums to the next one's.
  int64_t step() const noexcept { return call_.width * call_.columns; }

  const Outputs& out_;
  const Call& call_;
};

void store_rows(void* arg, int64_t begin, int64_t end) {
  const Outputs& out = *static_cast<const Outputs*>(arg);
  switch (out.call->convolution.dtype) {
    case NEQ_F32:
      return Store<Float>(out).rows(begin, end);
    case NEQ_F64:
      return Store<Double>(out).rows(begin, end);
    case NEQ_F16:
      return Store<Half>(out).rows(begin, end);
    case NEQ_BF16:
      return Store<BFloat16>(out).rows(begin, end);
  }
}

void run(const neq_parallel* parallel, int64_t tasks, int64_t each, neq_body body, void* arg) {
  if (parallel && tasks > each) {
    parallel->run(parallel->context, 0, tasks, each, body, arg);
  } else {
    body(arg, 0, tasks);
  }
}

}  // namespace
}  // namespace neq::conv

int64_t neq_conv_wgrad_cpu_scratch(const neq_tensor* dy, const neq_tensor* x, int64_t width,
                                   const neq_window* window, const neq_tensor* dw) {
  neq::conv::Call call{};
  if (neq::conv::prepare(dy, x, width, window, dw, &call) != NEQ_OK) return -1;
  return call.scratch_bytes();
}

neq_status neq_conv_wgrad_cpu(const neq_tensor* dy, const neq_tensor* x, const int32_t* index,
                              int64_t width, const neq_window* window, const neq_tensor* dw,
                              void* db, neq_scratch scratch, const neq_parallel* parallel) {
  using namespace neq::conv;
  Call call{};
  neq_status status = prepare(dy, x, width, window, dw, &call);
  if (status != NEQ_OK) return status;
  status = neq::pack::check_index(index, width, call.convolution.outputs, &call.count);
  if (status == NEQ_OK) status = neq::check_scratch(scratch, call.scratch_bytes());
  if (status != NEQ_OK) return status;

  if (call.scratch_bytes() > 0 && call.count > 0) {
    call.dy = static_cast<const char*>(dy->data);
    call.x = static_cast<const char*>(x->data);
    call.dy_end = neq::end_of(*dy);
    call.x_end = neq::end_of(*x);
    call.index = index;
    char* const at = neq::first_line(static_cast<char*>(scratch.data));
    call.offsets = reinterpret_cast<int64_t*>(at);
    call.partial = at + call.offset_bytes();
    call.rows = call.partial + call.partial_bytes();
    call.tiles = call.rows + call.rows_bytes();
    if (call.run == run_planes) find_offsets(call);
    const int64_t rows = std::max<int64_t>(kCopied / std::max<int64_t>(call.row, 1), 1);
    run(parallel, call.rows_staged, rows, run_staging, &call);
    run(parallel, call.tasks(), 1, run_tasks, &call);
  } else {
    call.count = 0;
  }
  const neq::Convolution& c = call.convolution;
  const int64_t row = std::max<int64_t>(c.inputs * c.taps(), 1);
  Outputs outputs = {&call, Loops::of(call), static_cast<char*>(dw->data), static_cast<char*>(db)};
  run(parallel, c.outputs, std::max<int64_t>(kCopied / row, 1), store_rows, &outputs);
  return NEQ_OK;
}
