// The part of a thread's floating-point mode that results depend on: how it rounds, and whether numbers that are too
// small to be normal are flushed to zero.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sasgd {

#if defined(__x86_64__)
constexpr unsigned kFloatModeBits = 0x8000 | 0x6000 | 0x0040;  // of MXCSR: flush results, rounding, flush operands

inline uint64_t float_mode() { return _mm_getcsr() & kFloatModeBits; }
inline void set_float_mode(uint64_t mode) {
  _mm_setcsr((_mm_getcsr() & ~kFloatModeBits) | static_cast<unsigned>(mode));
}
#elif defined(__aarch64__)
inline uint64_t float_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
inline uint64_t float_mode() { return 0; }
inline void set_float_mode(uint64_t) {}
#endif

}  // namespace sasgd
