// One block of threads at a time: who runs, who waits for whom, and the memory they share.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda_emulation.h"
#include "fiber.h"

namespace neq::emulation {

inline constexpr size_t kSharedDefault = 48 << 10;

// Memory that ends where it ends, for the address sanitizer, and holds NaN.
class Shared {
 public:
  Shared(const void* key, size_t bytes);
  void* data() const { return data_.get(); }

  const void* key;
  size_t bytes;

 private:
  struct Delete {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Delete> data_;
};

enum class State { kNew, kRunning, kReady, kAtBarrier, kInExchange, kDone };

struct Thread {
  State state = State::kNew;
  Fiber* fiber = nullptr;
  Site site{};
  unsigned mask = 0;
  uint64_t bits = 0;
  uint64_t lanes[32];
};

class Block {
 public:
  // `order` names each of the block's threads once; `limit` is for static and dynamic together.
  Block(std::vector<unsigned> order, size_t dynamic_bytes, size_t limit,
        const std::function<void()>& body);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Whether all threads came to their end; if not, problem() says who waits where.
  bool run();
  const std::string& problem() const { return problem_; }

  // For the thread that runs.
  void barrier(Site site) { wait(State::kAtBarrier, site); }
  const uint64_t* exchange(unsigned mask, uint64_t bits, Site site);
  void* dynamic() const { return dynamic_.data(); }
  void* shared(const void* key, size_t bytes);
  int lane() const { return static_cast<int>(current_ % 32); }

 private:
  Thread& current() { return threads_[current_]; }
  void select(unsigned thread);
  void serve(Fiber& fiber);
  void wait(State state, Site site);
  void complete_exchange(const Thread& asked);
  void leave_warp();
  bool release_barrier();
  std::string divergence() const;
  bool fail(const std::string& what);

  const std::function<void()>& body_;
  std::vector<unsigned> order_;
  std::vector<Thread> threads_;
  Shared dynamic_;
  std::vector<Shared> static_;
  size_t limit_;
  std::string problem_;
  size_t cursor_ = 0;
  unsigned current_ = 0;
};

// The one that runs.
extern Block* block;

}  // namespace neq::emulation
