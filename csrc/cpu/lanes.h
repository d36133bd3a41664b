// Sixteen floats that are worked on together, on any instruction set, and their loads and stores.
//
// The lane of an element depends only on its place in the chunk, never on the width of the registers, on alignment
// or on whether it is in a tail: so sums have the same bits on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace sasgd {
namespace SASGD_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float FloatPart __attribute__((vector_size(kWidth * sizeof(float))));
typedef uint32_t WordPart __attribute__((vector_size(kWidth * sizeof(uint32_t))));
typedef int32_t IntPart __attribute__((vector_size(kWidth * sizeof(int32_t))));
typedef uint16_t HalfPart __attribute__((vector_size(kWidth * sizeof(uint16_t))));
typedef double DoublePart __attribute__((vector_size(kWidth * sizeof(double))));

struct Lanes {
  FloatPart part[kParts];
};

inline Lanes operator+(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] + b.part[i];
  return r;
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] - b.part[i];
  return r;
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a.part[i] * b.part[i];
  return r;
}
inline Lanes operator*(float a, const Lanes& b) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = a * b.part[i];
  return r;
}

inline Lanes masked(const Lanes& x, uint32_t mask) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.part[i] = (FloatPart)((WordPart)x.part[i] & mask);
  return r;
}

// 32 bits for each lane.
struct Words {
  WordPart part[kParts];
};

// The random bits of the elements from a place on, a multiple of kLanes: `unfolded`.
inline Words unfolded_random_lanes(int64_t place, RandomKey key) {
  // A constant, since places that were stored one by one could not be loaded as a vector at once.
  static constexpr uint32_t kOrder[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Words r;
  std::memcpy(&r, kOrder, sizeof r);
  for (int i = 0; i < kParts; ++i) r.part[i] = unfolded_random_bits(r.part[i] ^ static_cast<uint32_t>(place), key);
  return r;
}

inline Words folded(const Words& words) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = words.part[i] ^ (words.part[i] >> 16);
  return r;
}

inline Words upper_halves(const Words& words) {
  Words r;
  for (int i = 0; i < kParts; ++i) r.part[i] = words.part[i] >> 16;
  return r;
}

// Adds each lane to its sum in float64, or begins the sums. As vectors, since GCC makes single additions of a loop over
// lanes.
inline void add_lanes(double* sums, const Lanes& lanes, bool begins) {
  for (int i = 0; i < kParts; ++i) {
    DoublePart sum = __builtin_convertvector(lanes.part[i], DoublePart);
    if (!begins) {
      DoublePart before;
      std::memcpy(&before, sums + i * kWidth, sizeof before);
      sum = before + sum;
    }
    std::memcpy(sums + i * kWidth, &sum, sizeof sum);
  }
}

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between sizes");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// From 16 to 32 bits and back, for numbers below 65536. GCC 12 makes four instructions of a vector's conversion.
inline WordPart widened(HalfPart x) {
#if defined(__AVX512F__)
  return (WordPart)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (WordPart)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, WordPart);
#endif
}
inline HalfPart narrowed(WordPart x) {
#if defined(__AVX512F__)
  return (HalfPart)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  return (HalfPart)_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
#else
  return __builtin_convertvector(x, HalfPart);
#endif
}

// Element types. widen is exact; narrow rounds to nearest, ties to even.
struct Float32 {
  static constexpr bool kStochastic = false;
  using Stored = float;
  using StoredPart = FloatPart;
  static FloatPart widen(FloatPart x) { return x; }
  static FloatPart narrow(FloatPart x) { return x; }
};

struct BFloat16 {
  static constexpr bool kStochastic = false;
  using Stored = uint16_t;
  using StoredPart = HalfPart;
  static FloatPart widen(HalfPart x) { return bit_cast<FloatPart>(widened(x) << 16); }
  static HalfPart narrow(FloatPart x) {
    const WordPart bits = bit_cast<WordPart>(x);
    const WordPart rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const WordPart quiet_nan = (bits >> 16) | 0x40u;  // rounding could carry a NaN over to infinity
    return narrowed(x != x ? quiet_nan : rounded);
  }
};

// Stored as bfloat16, and rounded up or down by chance.
struct StochasticBFloat16 : BFloat16 {
  static constexpr bool kStochastic = true;
  static HalfPart narrow(FloatPart x, WordPart random) {
    const WordPart bits = bit_cast<WordPart>(x);
    const WordPart quiet_nan = (bits >> 16) | 0x40u;
    return narrowed(x != x ? quiet_nan : stochastic_upper_half(bits, random));
  }
};

struct Float16 {
  static constexpr bool kStochastic = false;
  using Stored = uint16_t;
  using StoredPart = HalfPart;
#if defined(__AVX512F__)
  static FloatPart widen(HalfPart x) { return (FloatPart)_mm512_cvtph_ps((__m256i)x); }
  static HalfPart narrow(FloatPart x) { return (HalfPart)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
  static FloatPart widen(HalfPart x) { return (FloatPart)_mm256_cvtph_ps((__m128i)x); }
  static HalfPart narrow(FloatPart x) { return (HalfPart)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#else
  static constexpr uint32_t kBiasDifference = (127 - 15) << 23;

  static FloatPart widen(HalfPart x) {
    const WordPart half = __builtin_convertvector(x, WordPart);
    const WordPart magnitude = (half & 0x7fffu) << 13;
    const WordPart exponent = half & 0x7c00u;
    const WordPart special = magnitude + 2 * kBiasDifference;  // infinity, NaN
    const WordPart normal = magnitude + kBiasDifference;
    const FloatPart tiny = __builtin_convertvector(bit_cast<IntPart>(half & 0x3ffu), FloatPart) * 0x1p-24f;
    WordPart bits = exponent == 0x7c00u ? special : normal;
    bits = exponent == 0u ? bit_cast<WordPart>(tiny) : bits;
    return bit_cast<FloatPart>(bits | ((half & 0x8000u) << 16));
  }

  static HalfPart narrow(FloatPart x) {
    const WordPart bits = bit_cast<WordPart>(x);
    const WordPart magnitude = bits & 0x7fffffffu;
    const WordPart normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - kBiasDifference) >> 13;
    // Below the smallest normal number, adding 1/2 lets the hardware round to a multiple of 2^-24.
    const WordPart tiny = bit_cast<WordPart>(bit_cast<FloatPart>(magnitude) + 0.5f) - 0x3f000000u;
    const WordPart quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    WordPart half = magnitude < 0x38800000u ? tiny : normal;
    half = magnitude >= 0x477ff000u ? 0 * magnitude + 0x7c00u : half;  // 65520 and more: infinity
    half = magnitude > 0x7f800000u ? quiet_nan : half;
    return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), HalfPart);
  }
#endif
};

template <class T>
inline Lanes load(const typename T::Stored* from) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) {
    typename T::StoredPart stored;
    std::memcpy(&stored, from + i * kWidth, sizeof stored);
    r.part[i] = T::widen(stored);
  }
  return r;
}

// Stores, and gives back the values as stored. The random bits are for types that are rounded by chance.
template <class T>
inline Lanes store(typename T::Stored* to, const Lanes& lanes, const Words& random = {}) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) {
    typename T::StoredPart stored;
    if constexpr (T::kStochastic) {
      stored = T::narrow(lanes.part[i], random.part[i]);
    } else {
      stored = T::narrow(lanes.part[i]);
    }
    std::memcpy(to + i * kWidth, &stored, sizeof stored);
    r.part[i] = T::widen(stored);
  }
  return r;
}

}  // namespace SASGD_ISA
}  // namespace sasgd
