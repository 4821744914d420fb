#include "fiber.h"

#include <cstdint>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace neq::emulation {
namespace {

// Small: the address sanitizer clears its notes on the whole stack at every switch.
constexpr size_t kStackBytes = 48 << 10;

// The host thread's own stack, whose bounds a fiber learns when it is entered.
struct Host {
  ucontext_t context;
  void* shadow = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};
Host host;

std::vector<std::unique_ptr<Fiber>> all;
std::vector<Fiber*> idle;

void announce([[maybe_unused]] void** shadow, [[maybe_unused]] const void* stack,
              [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(shadow, stack, bytes);
#endif
}

void arrive([[maybe_unused]] void* shadow, [[maybe_unused]] const void** stack,
            [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(shadow, stack, bytes);
#endif
}

}  // namespace

Fiber* Fiber::take(void (*serve)(Fiber& fiber)) {
  if (idle.empty()) {
    all.push_back(std::make_unique<Fiber>());
    all.back()->stack_.reset(new char[kStackBytes]);
    idle.push_back(all.back().get());
  }
  Fiber* const fiber = idle.back();
  idle.pop_back();
  fiber->serve_ = serve;
  if (!fiber->parked_) fiber->prepare();
  fiber->parked_ = false;
  return fiber;
}

void Fiber::give_back() { idle.push_back(this); }

void Fiber::prepare() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_.get(), kStackBytes);
#endif
  shadow_ = nullptr;
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  const auto address = reinterpret_cast<uintptr_t>(this);
  makecontext(&context_, reinterpret_cast<void (*)()>(main), 2, static_cast<unsigned>(address),
              static_cast<unsigned>(address >> 32));
}

// makecontext passes integers only, so the fiber's address comes in halves.
void Fiber::main(unsigned low, unsigned high) {
  auto& fiber = *reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low);
  arrive(nullptr, &host.stack, &host.stack_bytes);
  for (;;) {
    fiber.serve_(fiber);
    fiber.parked_ = true;
    fiber.leave();
  }
}

void Fiber::enter() {
  announce(&host.shadow, stack_.get(), kStackBytes);
  swapcontext(&host.context, &context_);
  arrive(host.shadow, nullptr, nullptr);
}

void Fiber::leave() {
  announce(&shadow_, host.stack, host.stack_bytes);
  swapcontext(&context_, &host.context);
  arrive(shadow_, &host.stack, &host.stack_bytes);
}

}  // namespace neq::emulation
