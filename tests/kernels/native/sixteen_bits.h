// bfloat16 and float16 by plain integer arithmetic, for one number at a time: what the lanes are held against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace sasgd_test {

struct Format {
  int exponent_bits;
  int mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int infinity() const { return ((1 << exponent_bits) - 1) << mantissa_bits; }
};
constexpr Format kBFloat16Format{8, 7};
constexpr Format kFloat16Format{5, 10};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float plain_widen(uint16_t half, Format format) {
  const int magnitude = half & 0x7fff;
  const int exponent = magnitude >> format.mantissa_bits;
  const int hidden = 1 << format.mantissa_bits;
  const int mantissa = magnitude & (hidden - 1);
  float x;
  if (magnitude >= format.infinity()) {
    x = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else {
    const int significand = exponent ? mantissa + hidden : mantissa;
    x = std::ldexp(static_cast<float>(significand), std::max(exponent, 1) - format.bias() - format.mantissa_bits);
  }
  return std::copysign(x, half >> 15 ? -1.0f : 1.0f);
}

// To nearest, ties to even; a NaN keeps what fits of its payload and becomes quiet.
inline uint16_t plain_narrow(float x, Format format) {
  const uint32_t bits = bits_of(x);
  const int sign = (bits >> 16) & 0x8000;
  const int float_exponent = (bits >> 23) & 0xff;
  const int64_t mantissa = bits & 0x7fffff;
  const int hidden = 1 << format.mantissa_bits;
  if (float_exponent == 0xff && mantissa) {
    return static_cast<uint16_t>(sign | format.infinity() | hidden / 2 | mantissa >> (23 - format.mantissa_bits));
  }
  const int64_t significand = float_exponent ? mantissa + 0x800000 : mantissa;
  const int exponent = std::max(float_exponent, 1) - 127;
  const int kept_exponent = std::max(exponent, 1 - format.bias());  // below it, all numbers have the same places
  const int dropped_bits = std::min(23 - format.mantissa_bits + kept_exponent - exponent, 40);
  const int64_t rest = significand & ((int64_t{1} << dropped_bits) - 1);
  const int64_t half = int64_t{1} << (dropped_bits - 1);
  int64_t kept = significand >> dropped_bits;
  if (rest > half || (rest == half && kept % 2 == 1)) ++kept;
  // A carry out of the mantissa goes on into the exponent, and from the largest number to infinity.
  const int64_t magnitude = (int64_t{kept_exponent + format.bias()} << format.mantissa_bits) + kept - hidden;
  return static_cast<uint16_t>(sign | std::min<int64_t>(magnitude, format.infinity()));
}

// To bfloat16, away from zero if the bits that are dropped and the lower 16 random ones add up to so much.
inline uint16_t plain_narrow_by_chance(float x, uint32_t random) {
  if (x != x) return plain_narrow(x, kBFloat16Format);
  const uint32_t bits = bits_of(x);
  const bool away = bits % 0x10000 + random % 0x10000 >= 0x10000;
  return static_cast<uint16_t>(bits / 0x10000 + away);
}

}  // namespace sasgd_test
