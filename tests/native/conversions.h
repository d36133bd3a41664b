// The conversions of csrc/cpu/lanes.h, as every instruction set has them.
#pragma once

#include <cstdint>

namespace sasgd {

// They convert sixteen numbers at a time. narrow also gives what it stored, widened again.
struct Conversions {
  void (*widen_bfloat16)(const uint16_t* from, float* to);
  void (*widen_float16)(const uint16_t* from, float* to);
  void (*narrow_bfloat16)(const float* from, uint16_t* to, float* stored);
  void (*narrow_float16)(const float* from, uint16_t* to, float* stored);
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
