#include "block.h"

#include <utility>

namespace neq::emulation {
namespace {

constexpr std::align_val_t kSharedAlignment{128};

std::string name(Site site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

std::string place(const Thread& thread) {
  if (thread.state == State::kDone) return "its end";
  return (thread.state == State::kInExchange ? "warp operation " : "barrier ") + name(thread.site);
}

// Whether every lane that `asked` names has come to the same warp operation, or ended.
bool all_there(const Thread* warp, unsigned count, const Thread& asked) {
  for (unsigned lane = 0; lane < count; ++lane) {
    const Thread& other = warp[lane];
    if (!(asked.mask >> lane & 1) || other.state == State::kDone) continue;
    if (other.state != State::kInExchange || other.mask != asked.mask) return false;
    if (!(other.site == asked.site)) return false;
  }
  return true;
}

void hand_out(Thread* warp, unsigned count, unsigned mask) {
  uint64_t lanes[32];
  std::memset(lanes, 0xff, sizeof lanes);
  const auto waits = [&](unsigned lane) {
    return (mask >> lane & 1) && warp[lane].state == State::kInExchange;
  };
  for (unsigned lane = 0; lane < count; ++lane) {
    if (waits(lane)) lanes[lane] = warp[lane].bits;
  }
  for (unsigned lane = 0; lane < count; ++lane) {
    if (!waits(lane)) continue;
    std::memcpy(warp[lane].lanes, lanes, sizeof lanes);
    warp[lane].state = State::kReady;
  }
}

}  // namespace

Block* block = nullptr;

Shared::Shared(const void* key, size_t bytes)
    : key(key), bytes(bytes), data_(::operator new(bytes, kSharedAlignment)) {
  std::memset(data_.get(), 0xff, bytes);
}

void Shared::Delete::operator()(void* data) const { ::operator delete(data, kSharedAlignment); }

Block::Block(std::vector<unsigned> order, size_t dynamic_bytes, size_t limit,
             const std::function<void()>& body)
    : body_(body),
      order_(std::move(order)),
      threads_(order_.size()),
      dynamic_(nullptr, dynamic_bytes),
      limit_(limit) {}

Block::~Block() {
  for (const Thread& thread : threads_) {
    if (thread.fiber) thread.fiber->give_back();
  }
}

bool Block::run() {
  block = this;
  const auto runs = [this](Thread& thread) {
    return thread.state == State::kNew || thread.state == State::kReady;
  };
  for (bool waiting = false; !waiting;) {
    waiting = true;
    for (cursor_ = 0; cursor_ < order_.size(); ++cursor_) {
      if (!runs(threads_[order_[cursor_]])) continue;
      waiting = false;
      select(order_[cursor_]);
      if (!current().fiber) {
        current().fiber = Fiber::take([](Fiber& fiber) { block->serve(fiber); });
      }
      current().fiber->enter();
    }
    if (waiting) waiting = !release_barrier();
  }
  block = nullptr;
  return problem_.empty();
}

// Runs threads on this fiber, one after another while none has to wait.
void Block::serve(Fiber& fiber) {
  for (;;) {
    body_();
    current().state = State::kDone;
    current().fiber = nullptr;
    leave_warp();
    const size_t next = cursor_ + 1;
    if (next >= order_.size() || threads_[order_[next]].state != State::kNew) break;
    cursor_ = next;
    select(order_[next]);
    current().fiber = &fiber;
  }
  fiber.give_back();
}

const uint64_t* Block::exchange(unsigned mask, uint64_t bits, Site site) {
  Thread& thread = current();
  thread.mask = mask;
  thread.bits = bits;
  wait(State::kInExchange, site);
  return thread.lanes;
}

void* Block::shared(const void* key, size_t bytes) {
  size_t total = bytes + dynamic_.bytes;
  for (const Shared& known : static_) {
    if (known.key == key) return known.data();
    total += known.bytes;
  }
  if (total > limit_) fail("shared memory: " + std::to_string(total) + " bytes in one block");
  static_.emplace_back(key, bytes);
  return static_.back().data();
}

void Block::select(unsigned thread) {
  current_ = thread;
  current().state = State::kRunning;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
               thread / blockDim.x / blockDim.y};
}

void Block::wait(State state, Site site) {
  Thread& thread = current();
  thread.state = state;
  thread.site = site;
  if (state == State::kInExchange) complete_exchange(thread);
  if (thread.state != State::kReady) thread.fiber->leave();
  thread.state = State::kRunning;
}

// Lets the warp operation that `asked` waits in go on once all whom it names have come.
void Block::complete_exchange(const Thread& asked) {
  const unsigned first = current_ / 32 * 32;
  const unsigned count = std::min<unsigned>(32, static_cast<unsigned>(threads_.size()) - first);
  Thread* const warp = threads_.data() + first;
  if (all_there(warp, count, asked)) hand_out(warp, count, asked.mask);
}

// Whoever ends is waited for no longer.
void Block::leave_warp() {
  const unsigned first = current_ / 32 * 32;
  for (unsigned t = first; t < std::min<size_t>(first + 32, threads_.size()); ++t) {
    if (threads_[t].state == State::kInExchange) complete_exchange(threads_[t]);
  }
}

// Nobody can run: either all stand at one barrier, or at their end, or something is wrong.
bool Block::release_barrier() {
  const Thread& first = threads_[0];
  for (const Thread& thread : threads_) {
    const bool same = thread.state == first.state && thread.state != State::kInExchange;
    if (!same || !(thread.state == State::kDone || thread.site == first.site)) {
      return fail(divergence());
    }
  }
  if (first.state == State::kDone) return false;
  for (Thread& thread : threads_) thread.state = State::kReady;
  return true;
}

std::string Block::divergence() const {
  std::string text = "threads wait in different places:";
  std::vector<std::string> seen;
  for (size_t t = 0; t < threads_.size(); ++t) {
    const std::string here = place(threads_[t]);
    if (std::find(seen.begin(), seen.end(), here) != seen.end()) continue;
    seen.push_back(here);
    text += " thread " + std::to_string(t) + " at " + here + ";";
  }
  return text;
}

bool Block::fail(const std::string& what) {
  if (problem_.empty()) problem_ = what;
  return false;
}

}  // namespace neq::emulation
