// Fibers: stacks of their own on one host thread, switched by hand. The address sanitizer is told.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace neq::emulation {

class Fiber {
 public:
  // A fiber that will call `serve(fiber)` every time it starts afresh.
  static Fiber* take(void (*serve)(Fiber& fiber));
  // Its next start is a fresh one, whatever it was in the middle of.
  void give_back();

  void enter();  // from the host thread, until the fiber leaves
  void leave();  // from the fiber, until it is entered again

 private:
  static void main(unsigned low, unsigned high);
  void prepare();

  ucontext_t context_;
  std::unique_ptr<char[]> stack_;
  void (*serve_)(Fiber& fiber) = nullptr;
  void* shadow_ = nullptr;
  bool parked_ = false;  // behind serve, so that it can call it again
};

}  // namespace neq::emulation
