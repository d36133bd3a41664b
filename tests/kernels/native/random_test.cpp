// The random bits of csrc/update_rule.h: known values, and no order among those of neighbours of any kind.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "tests.h"
#include "update_rule.h"

namespace sasgd_test {
namespace {

using sasgd::mix;
using sasgd::random_bits;
using sasgd::random_key;
using sasgd::RandomKey;

constexpr int64_t kMany = 1 << 17;
constexpr double kSigmas = 6;  // for some thousand numbers that are looked at, none of which changes from run to run

using Words = std::vector<uint32_t>;

Words words_of(uint64_t stream, int64_t rounding_step, int64_t offset) {
  const RandomKey key = random_key(stream, rounding_step, offset);
  Words words;
  for (int64_t i = 0; i < kMany; ++i) words.push_back(random_bits(static_cast<uint32_t>(offset + i), key));
  return words;
}

// Worked out in another language, with whole numbers of any size.
void check_known_values() {
  constexpr struct {
    uint64_t stream;
    int64_t rounding_step, offset;
    uint64_t key;
    uint32_t bits;
  } kKnown[] = {
      {0, 0, 0, 0, 0},
      {1, 0, 0, 0x7ab40e090f363a7d, 0x65c9d4d0},
      {0x0123456789abcdef, 0, 0, 0xb8d5d379847aaf50, 0x577315fd},
      {0x0123456789abcdef, 7, 5, 0x6ad41579fc4c43a5, 0xd9639d6c},
      {0x0123456789abcdef, 7, (int64_t{1} << 32) + 5, 0x7389c004760cba61, 0x515a1a1e},
      {UINT64_MAX, 1, 16383, 0, 0xf03b6e17},
      {UINT64_MAX, int64_t{1} << 40, (int64_t{3} << 32) - 1, 0xf0fc1c13453cb870, 0xd14304bb},
  };
  for (const auto& known : kKnown) {
    const RandomKey key = random_key(known.stream, known.rounding_step, known.offset);
    const uint64_t whole = static_cast<uint64_t>(key.high) << 32 | key.low;
    CHECK(whole == known.key, "got %016llx, want %016llx", static_cast<unsigned long long>(whole),
          static_cast<unsigned long long>(known.key));
    const uint32_t bits = random_bits(static_cast<uint32_t>(known.offset), key);
    CHECK(bits == known.bits, "got %08x, want %08x", bits, known.bits);
  }
}

double sigmas_of_bits(int64_t ones, double count) {
  return std::fabs(2.0 * static_cast<double>(ones) - count) / std::sqrt(count);
}

// Each bit is 1 in half of the words, and no two bits of a word are alike, or opposite, more often than by chance.
void check_bits(const char* what, const Words& words) {
  for (int a = 0; a < 32; ++a) {
    int64_t ones = 0, differences[32] = {};
    for (const uint32_t word : words) {
      ones += word >> a & 1;
      for (int b = 0; b < a; ++b) differences[b] += (word >> a ^ word >> b) & 1;
    }
    const double count = static_cast<double>(words.size());
    CHECK(sigmas_of_bits(ones, count) < kSigmas, "%s: bit %d is 1 in %lld words", what, a,
          static_cast<long long>(ones));
    for (int b = 0; b < a; ++b) {
      CHECK(sigmas_of_bits(differences[b], count) < kSigmas, "%s: bits %d and %d differ in %lld words", what, a, b,
            static_cast<long long>(differences[b]));
    }
  }
}

// The numbers that weights and momentum buffers are rounded with, from -1 to 1.
double low_half(uint32_t word) { return (word % 0x10000 + 0.5) * 0x1p-15 - 1; }
double high_half(uint32_t word) { return low_half(word >> 16); }

double sigmas_of_product(const Words& a, const Words& b, double (*half_of_a)(uint32_t), double (*half_of_b)(uint32_t)) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += half_of_a(a[i]) * half_of_b(b[i]);
  return std::fabs(sum) * 3 / std::sqrt(static_cast<double>(a.size()));
}

// No bit of the one goes with that of the other, and no half with a half.
void check_unlike(const char* what, const Words& a, const Words& b) {
  for (int bit = 0; bit < 32; ++bit) {
    int64_t differences = 0;
    for (size_t i = 0; i < a.size(); ++i) differences += (a[i] ^ b[i]) >> bit & 1;
    CHECK(sigmas_of_bits(differences, static_cast<double>(a.size())) < kSigmas, "%s: bit %d differs in %lld words",
          what, bit, static_cast<long long>(differences));
  }
  for (const auto half_of_a : {low_half, high_half}) {
    for (const auto half_of_b : {low_half, high_half}) {
      const double sigmas = sigmas_of_product(a, b, half_of_a, half_of_b);
      CHECK(sigmas < kSigmas, "%s: halves go together by %g sigmas", what, sigmas);
    }
  }
}

Words shifted(const Words& words, int64_t distance) {
  Words later(words.begin() + distance, words.end());
  later.insert(later.end(), words.begin(), words.begin() + distance);
  return later;
}

void check_neighbours(const char* what, uint64_t stream, int64_t rounding_step, int64_t offset) {
  const Words words = words_of(stream, rounding_step, offset);
  check_bits(what, words);
  const double sigmas = sigmas_of_product(words, words, low_half, high_half);
  CHECK(sigmas < kSigmas, "%s: the halves of a word go together by %g sigmas", what, sigmas);
  for (int64_t distance = 1; distance < kMany; distance *= 2) {
    check_unlike("elements", words, shifted(words, distance));
    check_unlike("elements", words, shifted(words, distance + distance / 2 + 1));
  }
  check_unlike("steps", words, words_of(stream, rounding_step + 1, offset));
  check_unlike("steps", words, words_of(stream, rounding_step + 1024, offset));
  check_unlike("upper halves of places", words, words_of(stream, rounding_step, offset + (int64_t{1} << 32)));
  check_unlike("upper halves of places", words, words_of(stream, rounding_step, offset + (int64_t{1} << 40)));
}

}  // namespace

void test_random() {
  check_known_values();
  check_neighbours("the first step with seed 0", 0, 0, 0);
  check_neighbours("some step", mix(mix(2018) + 3), 1000, 16384);
  // As precision.py has them: of seeds and of a parameter's places among all.
  const Words words = words_of(mix(mix(5) + 8), 4, 0);
  check_unlike("parameters", words, words_of(mix(mix(5) + 9), 4, 0));
  check_unlike("parameters", words, words_of(mix(mix(5) + 8 + 64), 4, 0));
  check_unlike("seeds", words, words_of(mix(mix(6) + 8), 4, 0));
  check_unlike("a parameter and the step after of the next", words, words_of(mix(mix(5) + 9), 5, 0));
}

}  // namespace sasgd_test
