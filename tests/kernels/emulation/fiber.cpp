#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <stdexcept>

#include "sanitizers.h"

namespace sasgd_emulation {
namespace {

// Where the fibers are resumed.
struct Outside {
  Context context;
  Fiber* resumed = nullptr;
  void* thread = nullptr;
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
} outside;

// GCC's own setjmp and longjmp: a few instructions, without the system call for the signal mask that swapcontext makes,
// and not watched by the sanitizers. They must not stand in one function for one context.
[[gnu::noinline, noreturn]] void jump(Context& to) { __builtin_longjmp(to.words, 1); }

[[gnu::noinline]] void switch_context(Context& from, Context& to) {
  if (__builtin_setjmp(from.words) == 0) jump(to);
}

[[gnu::noinline]] void switch_context(Context& from, const ucontext_t& to) {
  if (__builtin_setjmp(from.words) == 0) setcontext(&to);
}

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

Fiber::Fiber(void (*function)()) : function_(function) {
  // Below the stack is a page that cannot be written: an overflow stops the program and does not spoil a neighbour.
  const size_t bytes = page_bytes() + kStackBytes;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page_bytes(), PROT_NONE) != 0) {
    throw std::runtime_error("emulated CUDA: no memory for another stack; let fewer blocks be resident");
  }
  stack_ = static_cast<char*>(memory) + page_bytes();
  thread_ = new_thread();
}

Fiber::~Fiber() {
  // Whatever the function did came before, also where it never got to its end.
  void* const own = current_thread();
  become_thread(thread_);
  release(this);
  become_thread(own);
  acquire(this);
  end_thread(thread_);
  forget_frames(stack_, kStackBytes);
  munmap(stack_ - page_bytes(), page_bytes() + kStackBytes);
}

void Fiber::resume() {
  outside.resumed = this;
  outside.thread = current_thread();
  leave_stack(&outside.fake_stack, stack_, kStackBytes);
  become_thread(thread_);
  if (has_begun_) {
    switch_context(outside.context, context_);
  } else {
    has_begun_ = true;
    begin();
  }
  enter_stack(outside.fake_stack, nullptr, nullptr);
}

void Fiber::pause() {
  leave_stack(&fake_stack_, outside.stack, outside.stack_bytes);
  become_thread(outside.thread);
  switch_context(context_, outside.context);
  enter_stack(fake_stack_, &outside.stack, &outside.stack_bytes);
}

// The first switch is the only one that ucontext has to make.
void Fiber::begin() {
  ucontext_t first;
  getcontext(&first);
  first.uc_stack.ss_sp = stack_;
  first.uc_stack.ss_size = kStackBytes;
  first.uc_link = nullptr;
  makecontext(&first, &Fiber::enter, 0);
  switch_context(outside.context, first);
}

void Fiber::enter() {
  enter_stack(nullptr, &outside.stack, &outside.stack_bytes);
  outside.resumed->function_();
}

}  // namespace sasgd_emulation
