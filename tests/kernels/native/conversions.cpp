// Compiled once for each instruction set, with the flags of csrc/cpu/step_kernel.cpp.
#include "conversions.h"

#include "cpu/lanes.h"

namespace sasgd {
namespace SASGD_ISA {
namespace {

template <class T>
void widen(const uint16_t* from, float* to) {
  store<Float32>(to, load<T>(from));
}

template <class T>
void narrow(const float* from, uint16_t* to, float* stored) {
  store<Float32>(stored, store<T>(to, load<Float32>(from)));
}

void narrow_by_chance(const float* from, const uint32_t* random, uint16_t* to, float* stored) {
  Words words;
  std::memcpy(&words, random, sizeof words);
  store<Float32>(stored, store<StochasticBFloat16>(to, load<Float32>(from), words));
}

void random(int64_t place, RandomKey key, uint32_t* to) {
  const Words words = folded(unfolded_random_lanes(place, key));
  std::memcpy(to, &words, sizeof words);
}

}  // namespace

extern const Conversions kConversions;
const Conversions kConversions = {widen<BFloat16>, widen<Float16>,   narrow<BFloat16>,
                                  narrow<Float16>, narrow_by_chance, random};

}  // namespace SASGD_ISA
}  // namespace sasgd
