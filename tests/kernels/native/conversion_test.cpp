// Every instruction set rounds to 16 bits, and back, as plain integer arithmetic does, also where small numbers are
// flushed, and has the same random bits.
#include <string>

#include "check.h"
#include "conversions.h"
#include "cpu/float_mode.h"
#include "cpu/step.h"
#include "sixteen_bits.h"
#include "tests.h"

namespace sasgd_test {
namespace {

constexpr int kLanes = 16;

// Small numbers are flushed to zero, before operations and after them.
#if defined(__aarch64__)
constexpr uint64_t kFlushing = 1u << 24;
#else
constexpr uint64_t kFlushing = 0x8000 | 0x0040;
#endif

class InMode {
 public:
  explicit InMode(uint64_t mode) { sasgd::set_float_mode(mode); }
  ~InMode() { sasgd::set_float_mode(before_); }
  InMode(const InMode&) = delete;
  InMode& operator=(const InMode&) = delete;

 private:
  const uint64_t before_ = sasgd::float_mode();
};

const sasgd::Conversions& conversions_of(const std::string& instruction_set) {
#if defined(SASGD_HAVE_X86_VARIANTS)
  if (instruction_set == "avx2") return sasgd::avx2::kConversions;
  if (instruction_set == "avx512") return sasgd::avx512::kConversions;
#endif
  CHECK(instruction_set == "baseline", "%s is not tested", instruction_set.c_str());
  return sasgd::baseline::kConversions;
}

// Two NaNs are the same here: what becomes of a payload in a computation is up to the machine.
bool same_number(float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); }

struct Conversion {
  const char* name;
  Format format;
  void (*widen)(const uint16_t* from, float* to);
  void (*narrow)(const float* from, uint16_t* to, float* stored);
  uint64_t mode;  // in which they are made
};

void check_every_half(const Conversion& conversion) {
  for (uint32_t first = 0; first < 0x10000; first += kLanes) {
    uint16_t halves[kLanes], back[kLanes];
    float wide[kLanes], stored[kLanes];
    for (int i = 0; i < kLanes; ++i) halves[i] = static_cast<uint16_t>(first + i);
    {
      const InMode mode(conversion.mode);
      conversion.widen(halves, wide);
      conversion.narrow(wide, back, stored);
    }
    for (int i = 0; i < kLanes; ++i) {
      const float expected = plain_widen(halves[i], conversion.format);
      CHECK(same_number(wide[i], expected), "%s %04x: got %a, want %a", conversion.name, halves[i], wide[i], expected);
      const int quiet = expected != expected ? 1 << (conversion.format.mantissa_bits - 1) : 0;
      CHECK(back[i] == (halves[i] | quiet), "%s %04x: came back as %04x", conversion.name, halves[i], back[i]);
      CHECK(same_number(stored[i], expected), "%s %04x: stored as %a", conversion.name, halves[i], stored[i]);
    }
  }
}

// The lower 13 bits of a float32 decide how it is rounded to float16; for bfloat16 these and the 3 above them. So
// this meets every halfway point of both and its neighbours, every exponent, both infinities, and NaNs of all kinds.
void check_every_halfway_point(const Conversion& conversion) {
  constexpr uint32_t kLower[kLanes] = {0, 1, 0xfff, 0x1000, 0x1001, 0x1fff};
  for (uint32_t upper = 0; upper < 1u << 19; ++upper) {
    float wide[kLanes], stored[kLanes];
    uint16_t halves[kLanes];
    for (int i = 0; i < kLanes; ++i) wide[i] = float_of(upper << 13 | kLower[i]);
    {
      const InMode mode(conversion.mode);
      conversion.narrow(wide, halves, stored);
    }
    for (int i = 0; i < 6; ++i) {
      const uint16_t expected = plain_narrow(wide[i], conversion.format);
      CHECK(halves[i] == expected, "%s of %a: got %04x, want %04x", conversion.name, wide[i], halves[i], expected);
    }
  }
}

// Every number that bfloat16 has, with bits to be dropped that make it larger by next to nothing, a half and next to
// all; the upper random bits make no difference.
void check_every_chance(const sasgd::Conversions& set) {
  constexpr uint32_t kLower[] = {0, 1, 0x8000, 0xffff}, kRandom[] = {0, 0xabcd0001, 0x7fff, 0xffffffff};
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    float wide[kLanes], stored[kLanes];
    uint32_t random[kLanes];
    uint16_t halves[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      wide[i] = float_of(upper << 16 | kLower[i % 4]);
      random[i] = kRandom[i / 4];
    }
    set.narrow_by_chance(wide, random, halves, stored);
    for (int i = 0; i < kLanes; ++i) {
      const uint16_t expected = plain_narrow_by_chance(wide[i], random[i]);
      CHECK(halves[i] == expected, "%a with %08x: got %04x, want %04x", wide[i], random[i], halves[i], expected);
      CHECK(same_number(stored[i], plain_widen(expected, kBFloat16Format)), "%04x: stored as %a", expected, stored[i]);
    }
  }
}

void check_random_lanes(const sasgd::Conversions& set) {
  for (const int64_t place : {int64_t{0}, int64_t{16368}, (int64_t{1} << 32) - kLanes, int64_t{3} << 32}) {
    const sasgd::RandomKey key = sasgd::random_key(7, 2, place);
    uint32_t words[kLanes];
    set.random(place, key, words);
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t expected = sasgd::random_bits(static_cast<uint32_t>(place + i), key);
      CHECK(words[i] == expected, "lane %d: got %08x, want %08x", i, words[i], expected);
    }
  }
}

}  // namespace

void test_conversions() {
  for (const std::string& name : sasgd::instruction_sets()) {
    const sasgd::Conversions& set = conversions_of(name);
    for (const uint64_t mode : {sasgd::float_mode(), kFlushing}) {
      const Conversion bfloat16{"bfloat16", kBFloat16Format, set.widen_bfloat16, set.narrow_bfloat16, mode};
      const Conversion float16{"float16", kFloat16Format, set.widen_float16, set.narrow_float16, mode};
      for (const Conversion& conversion : {bfloat16, float16}) {
        check_every_half(conversion);
        check_every_halfway_point(conversion);
      }
    }
    check_every_chance(set);
    check_random_lanes(set);
  }
}

}  // namespace sasgd_test
