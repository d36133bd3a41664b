// A parallel loop whose iterations may run in any order on any thread.
#pragma once

#include <cstdint>

#include "float_mode.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1  // as GCC says it
#endif
#endif

#if defined(__SANITIZE_THREAD__)
// GCC's OpenMP runtime is not instrumented: tell the thread sanitizer what its fork and join order. A thread reads what
// the region captured before it can acquire anything, so the loop itself goes unwatched, and only `body` is watched.
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define SASGD_TSAN_ACQUIRE(token) __tsan_acquire(token)
#define SASGD_TSAN_RELEASE(token) __tsan_release(token)
#define SASGD_TSAN_UNWATCHED __attribute__((no_sanitize("thread")))
#else
#define SASGD_TSAN_ACQUIRE(token) (void)(token)
#define SASGD_TSAN_RELEASE(token) (void)(token)
#define SASGD_TSAN_UNWATCHED
#endif

namespace sasgd {

// Calls body(i) for 0 <= i < count on up to `threads` threads, all in the caller's floating-point mode. body must not
// throw.
template <class Body>
SASGD_TSAN_UNWATCHED void parallel_for(int64_t count, int threads, const Body& body) {
  const uint64_t mode = float_mode();
  char token = 0;
  SASGD_TSAN_RELEASE(&token);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads) if (threads > 1 && count > 1)
#endif
  {
    SASGD_TSAN_ACQUIRE(&token);
    const uint64_t own_mode = float_mode();
    if (own_mode != mode) set_float_mode(mode);
#if defined(_OPENMP)
#pragma omp for schedule(dynamic, 1) nowait
#endif
    for (int64_t i = 0; i < count; ++i) body(i);
    if (own_mode != mode) set_float_mode(own_mode);
    SASGD_TSAN_RELEASE(&token);
  }
  SASGD_TSAN_ACQUIRE(&token);
#if !defined(_OPENMP)
  (void)threads;
#endif
}

}  // namespace sasgd
