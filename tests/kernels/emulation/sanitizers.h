// What the sanitizers have to be told by a program that switches stacks.
//
// The emulation itself is compiled without -fsanitize, because its own memory accesses are not the CUDA threads';
// SASGD_ADDRESS_SANITIZER or SASGD_THREAD_SANITIZER says which sanitizer the kernels are compiled with. It is compiled
// with optimization: the linker might else put the kernels' copy of an inline function, which is checked, in its place.
// To the thread sanitizer each CUDA thread is a thread, of which it can follow some 8000, and only release() and
// acquire() order them.
#pragma once

#include <cstddef>

#if defined(SASGD_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if defined(SASGD_ADDRESS_SANITIZER)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

namespace sasgd_emulation {

#if defined(SASGD_THREAD_SANITIZER)
constexpr bool kChecksThreads = true;
inline void* current_thread() { return __tsan_get_current_fiber(); }
inline void* new_thread() { return __tsan_create_fiber(0); }
inline void end_thread(void* thread) { __tsan_destroy_fiber(thread); }
// From here on, memory accesses count as that thread's. The switch alone orders nothing.
inline void become_thread(void* thread) { __tsan_switch_to_fiber(thread, 1); }
// What happened before a release() happened before what follows an acquire() of the same address.
inline void release(void* address) { __tsan_release(address); }
inline void acquire(void* address) { __tsan_acquire(address); }
#else
constexpr bool kChecksThreads = false;
inline void* current_thread() { return nullptr; }
inline void* new_thread() { return nullptr; }
inline void end_thread(void*) {}
inline void become_thread(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
#endif

#if defined(SASGD_ADDRESS_SANITIZER)
// Before and after a switch to another stack. `fake_stack` is of the one that is left, and of the one that was entered.
inline void leave_stack(void** fake_stack, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
}
inline void enter_stack(void* fake_stack, const void** bottom_left, size_t* size_left) {
  __sanitizer_finish_switch_fiber(fake_stack, bottom_left, size_left);
}
// The frames of functions that never returned would count as forbidden for whoever gets the memory next.
inline void forget_frames(const void* bottom, size_t size) { __asan_unpoison_memory_region(bottom, size); }
#else
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
inline void forget_frames(const void*, size_t) {}
#endif

}  // namespace sasgd_emulation
