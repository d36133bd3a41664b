// A fiber: a stack of its own, on which a function runs until it pauses, and later goes on.
//
// The functions that switch tell the sanitizers about it (sanitizers.h), who follow stacks and threads on their own.
#pragma once

#include <cstddef>

namespace sasgd_emulation {

// What __builtin_setjmp keeps: frame pointer, stack pointer, where to go on.
struct Context {
  void* words[5];
};

class Fiber {
 public:
  // The function runs at the first resume(). It never returns: when there is nothing left to do it pauses.
  explicit Fiber(void (*function)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Called outside of all fibers: goes on in the fiber until it pauses.
  void resume();
  // Called in this fiber: goes back to where it was resumed.
  void pause();

  bool has_on_stack(const void* address) const { return address >= stack_ && address < stack_ + kStackBytes; }

 private:
  // Room for kernel arguments of 32 KB and for the large frames of the address sanitizer. Only pages that are touched
  // take memory.
  static constexpr size_t kStackBytes = 256 << 10;

  void begin();
  static void enter();

  void (*function_)();
  char* stack_;
  Context context_;
  bool has_begun_ = false;
  void* thread_ = nullptr;      // what the thread sanitizer knows it as
  void* fake_stack_ = nullptr;  // the address sanitizer's
};

}  // namespace sasgd_emulation
