// Several steps of a plan: against a double loop, and the same bits however the work is dealt out.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "../check.h"
#include "../double_loop.h"
#include "control.h"
#include "emulated_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

// Around the lengths of a vector, a thread block's stride and a chunk, several chunks, and two levels of the tree.
constexpr int64_t kSizes[] = {0, 1, 3, 4, 5, 7, 8, 9, 1023, 1024, 1025, 2049, 8191, 8192, 8193, 20001};
constexpr int64_t kTwoLevels = 17 * 8192 + 3;
// Mixed precision has loops with vectors half as long.
constexpr int64_t kFewerSizes[] = {0, 1, 3, 4, 5, 9, 1025, 8193, 20001};
constexpr int kSteps = 3;

Case big_case() {
  Case made = every_kind_of_tensor(kSizes, kPlainKinds);
  Random random;
  made.add_tensor(kTwoLevels, 1, kFloat32Kind, random);
  made.add_layer(true, 1.25);
  return made;
}

// PlainWork tensors have other loops in the company of others.
Case mixed_case() {
  Case made = every_kind_of_tensor(kFewerSizes, kMixedKinds);
  Random random;
  for (int32_t group = 0; group < 3; ++group) {
    for (const Kind& kind : kPlainKinds) {
      made.add_tensor(9001, group, kind, random);
      made.add_layer(true, 1.25);
    }
  }
  return made;
}

// One of each kind, one tensor with two levels of sums, one that is no layer's.
template <size_t kKinds>
Case small_case(const Kind (&kinds)[kKinds]) {
  Case made;
  made.groups = every_momentum();
  Random random;
  for (const Kind& kind : kinds) {
    made.add_tensor(9001, 1, kind, random);
    made.add_layer(true, 1.25);
  }
  made.add_tensor(kTwoLevels, 2, {DType::kBFloat16, DType::kBFloat16, {}}, random);
  made.add_layer(true, 0.8);
  made.add_tensor(20001, 0, kFloat32Kind, random);
  return made;
}

void check_rounding_steps(const EmulatedPlan& plan, const Case& now) {
  for (size_t t = 0; t < now.tensors.size(); ++t) {
    CHECK(plan.rounding_steps[t] == now.tensors[t].rounding_step, "rounding steps of tensor %zu: got %lld, want %lld",
          t, static_cast<long long>(plan.rounding_steps[t]), static_cast<long long>(now.tensors[t].rounding_step));
  }
}

// Each step by itself, and the norms that are carried to the next one.
void check_steps(Case now) {
  EmulatedPlan plan(now);
  const std::vector<double> measured = plan.row_norm_sq, at_first = plain_row_norm_sq(now);
  for (size_t b = 0; b < now.layers.size(); ++b) {
    CHECK(std::fabs(measured[b] - at_first[b]) <= 1e-6 * at_first[b], "norm %zu: got %.9g, want %.9g", b, measured[b],
          at_first[b]);
  }
  for (int step = 0; step < kSteps; ++step) {
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(step);
    plan.step(now, inputs);
    check_step(before, now, inputs, now.options.track_norms ? plain_row_norm_sq(before) : at_first);
    const std::vector<double> want = now.options.track_norms ? EmulatedPlan(now).row_norm_sq : measured;
    CHECK(plan.row_norm_sq == want, "norms after step %d are not those of a norm pass", step);
    check_rounding_steps(plan, now);
  }
  CHECK(plan.all_stale_steps() == 0, "carried norms were taken for stale");
}

// All that steps leave behind, however the work is dealt out.
struct Outcome {
  Case data;
  std::vector<double> row_norm_sq;
  std::vector<double> gradient_norm_sq;
  std::vector<double> gradient_sums;
};

Outcome run_steps(Case data, int32_t max_thread_blocks, uint64_t seed, unsigned resident_thread_blocks) {
  sasgd_emulation::settings().multiprocessors = 8;
  sasgd_emulation::settings().seed = seed;
  sasgd_emulation::settings().resident_blocks = resident_thread_blocks;
  EmulatedPlan plan(data, max_thread_blocks);
  for (int step = 0; step < kSteps; ++step) {
    const std::vector<Input> inputs = data.inputs(step);
    if (data.options.relative) plan.measure_gradients(data, inputs);
    plan.step(data, inputs);
  }
  CHECK(plan.all_stale_steps() == 0, "stale norms with %d thread blocks, seed %d", max_thread_blocks,
        static_cast<int>(seed));
  sasgd_emulation::reset();
  return {data, plan.row_norm_sq, plan.gradient_norm_sq, plan.gradient_sums};
}

// For who builds the program twice, from two ways to write the kernels.
void print_digest(const Outcome& outcome) {
  uint64_t digest = 0xcbf29ce484222325u;
  for (const Tensor& tensor : outcome.data.tensors) {
    for (const Numbers* numbers : {&tensor.weight, &tensor.momentum_buffer, &tensor.param}) {
      digest = numbers->added_to(digest);
    }
  }
  for (const std::vector<double>* carried : {&outcome.row_norm_sq, &outcome.gradient_norm_sq}) {
    for (const double number : *carried) {
      uint64_t bits;
      std::memcpy(&bits, &number, sizeof bits);
      digest = (digest ^ bits) * 0x100000001b3u;
    }
  }
  std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
}

void check_same_bits(const Case& data) {
  struct {
    int32_t max_thread_blocks;
    uint64_t seed;
    unsigned resident_thread_blocks;
  } const ways[] = {{2, 0, 0}, {3, 1, 0}, {7, 2, 0}, {16, 3, 0}, {16, 4, 1}, {5, 5, 2}};
  const Outcome expected = run_steps(data, 1, 0, 0);
  print_digest(expected);
  for (const auto& way : ways) {
    const Outcome got = run_steps(data, way.max_thread_blocks, way.seed, way.resident_thread_blocks);
    CHECK(got.row_norm_sq == expected.row_norm_sq, "norms, %d thread blocks", way.max_thread_blocks);
    CHECK(got.gradient_norm_sq == expected.gradient_norm_sq && got.gradient_sums == expected.gradient_sums,
          "norms of gradients, %d thread blocks", way.max_thread_blocks);
    for (size_t t = 0; t < data.tensors.size(); ++t) {
      CHECK(got.data.tensors[t].is_same(expected.data.tensors[t]), "tensor %zu, %d thread blocks", t,
            way.max_thread_blocks);
    }
  }
}

void check_threads(const std::vector<Kind>& kinds, bool is_relative) {
  Case made;
  made.groups = every_momentum();
  Random random;
  for (const Kind& kind : kinds) {
    made.add_tensor(1025, 1, kind, random);
    made.add_layer(true, 1.25);
  }
  made.add_tensor(2 * 8192 + 5, 2, kFloat32Kind, random);
  made.add_layer(true, 0.8);
  if (is_relative) make_relative(made);
  EmulatedPlan plan(made, 3);
  for (int step = 0; step < 2; ++step) {
    const Case before = made;
    const std::vector<Input> inputs = made.inputs(step);
    if (is_relative) plan.measure_gradients(made, inputs);
    const std::vector<double> v = plan.gradient_norm_sq;
    plan.step(made, inputs);
    check_step(before, made, inputs, plain_row_norm_sq(before), v);
  }
}

}  // namespace

void test_cuda_steps() {
  for (Case made : {big_case(), mixed_case()}) {
    check_steps(made);
    freeze(made);
    check_steps(made);
  }
}

void test_cuda_bits() {
  for (Case made : {small_case(kPlainKinds), small_case(kMixedKinds)}) {
    check_same_bits(made);
    Case relative = made;
    make_relative(relative);
    check_same_bits(relative);
    freeze(made);
    check_same_bits(made);
  }
}

void test_cuda_threads() {
  for (const bool is_relative : {false, true}) {
    check_threads({std::begin(kPlainKinds), std::end(kPlainKinds)}, is_relative);
    check_threads({std::begin(kMixedKinds), std::end(kMixedKinds)}, is_relative);
  }
}

}  // namespace sasgd_test
