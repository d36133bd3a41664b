// Compiled once for each instruction set, with the flags of csrc/cpu/step_kernel.cpp.
#include "conversions.h"

#include "../../csrc/cpu/lanes.h"

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

}  // namespace

extern const Conversions kConversions;
const Conversions kConversions = {widen<BFloat16>, widen<Float16>, narrow<BFloat16>, narrow<Float16>};

}  // namespace SASGD_ISA
}  // namespace sasgd
