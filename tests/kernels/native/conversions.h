// The conversions and random bits of csrc/cpu/lanes.h, as every instruction set has them.
#pragma once

#include <cstdint>

#include "update_rule.h"

namespace sasgd {

// They convert sixteen numbers at a time. narrow also gives what it stored, widened again.
struct Conversions {
  void (*widen_bfloat16)(const uint16_t* from, float* to);
  void (*widen_float16)(const uint16_t* from, float* to);
  void (*narrow_bfloat16)(const float* from, uint16_t* to, float* stored);
  void (*narrow_float16)(const float* from, uint16_t* to, float* stored);
  // To bfloat16, up or down.
  void (*narrow_by_chance)(const float* from, const uint32_t* random, uint16_t* to, float* stored);
  void (*random)(int64_t place, RandomKey key, uint32_t* to);
};

namespace baseline {
extern const Conversions kConversions;
}
#if defined(SASGD_HAVE_X86_VARIANTS)
namespace avx2 {
extern const Conversions kConversions;
}
namespace avx512 {
extern const Conversions kConversions;
}
#endif

}  // namespace sasgd
