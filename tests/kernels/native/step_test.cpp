// Several steps of a plan: against a double loop, and the same bits from every instruction set and thread count.
#include <cmath>
#include <limits>
#include <string>

#include "carried.h"
#include "native_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

// Around the powers of two that lanes, spans and chunks have for their lengths, and several chunks.
constexpr int64_t kSizes[] = {0,    1,    7,    8,    9,    15,   16,    17,    31,    32,   33,
                              1023, 1024, 1025, 4095, 4096, 4097, 16383, 16384, 16385, 40000};
// Mixed precision goes through the same loops.
constexpr int64_t kFewerSizes[] = {0, 1, 15, 16, 17, 33, 1023, 1025, 16384, 40000};
constexpr int64_t kPartSizes[] = {0, 5, 16385, 300000};  // the last in several tasks
constexpr int kSteps = 4;

// Each step by itself, and the norms that are carried to the next one.
void check_steps(Case now) {
  NativePlan plan(now);
  const std::vector<double> measured = plan.row_norm_sq;
  const std::vector<double> at_first = plain_row_norm_sq(now);
  for (size_t b = 0; b < now.layers.size(); ++b) {
    CHECK(std::fabs(measured[b] - at_first[b]) <= 1e-6 * at_first[b], "norm %zu: got %.9g, want %.9g", b, measured[b],
          at_first[b]);
  }
  for (int step = 0; step < kSteps; ++step) {
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(step);
    const int64_t stale = plan.step(now, inputs);
    CHECK(stale == 0, "step %d took %lld norms for stale", step, static_cast<long long>(stale));
    check_step(before, now, inputs, now.options.track_norms ? plain_row_norm_sq(before) : at_first);
    const bool kept = plan.row_norm_sq == (now.options.track_norms ? NativePlan(now).row_norm_sq : measured);
    CHECK(kept, "norms after step %d are not those of a norm pass", step);
  }
}

// All that steps leave behind, for one instruction set and number of threads.
struct Outcome {
  Case data;
  std::vector<double> row_norm_sq;
  std::vector<double> gradient_norm_sq;
  std::vector<double> gradient_sums;
};

Outcome run_steps(Case data, const std::string& instruction_set, int threads) {
  sasgd::use_instruction_set(instruction_set);
  NativePlan plan(data, threads);
  for (int step = 0; step < kSteps; ++step) {
    CHECK(plan.step(data, data.inputs(step)) == 0, "stale in step %d, %s", step, instruction_set.c_str());
  }
  return {data, plan.row_norm_sq, plan.gradient_norm_sq, plan.gradient_sums};
}

void check_same_bits(const Case& data) {
  const Outcome expected = run_steps(data, "baseline", 1);
  for (const std::string& name : sasgd::instruction_sets()) {
    for (const int threads : {1, 2, 3, 7}) {
      const Outcome got = run_steps(data, name, threads);
      CHECK(got.row_norm_sq == expected.row_norm_sq, "norms, %s, %d threads", name.c_str(), threads);
      CHECK(got.gradient_norm_sq == expected.gradient_norm_sq && got.gradient_sums == expected.gradient_sums,
            "norms of gradients, %s, %d threads", name.c_str(), threads);
      for (size_t t = 0; t < data.tensors.size(); ++t) {
        CHECK(got.data.tensors[t].is_same(expected.data.tensors[t]), "tensor %zu, %s, %d threads", t, name.c_str(),
              threads);
      }
    }
  }
}

// A layer that is not finite leaves the others as they are, and is not taken for stale.
void check_not_finite() {
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case healthy = case_of_four(), poisoned = healthy;
    poisoned.tensors[2].weight.set(5, poison);
    NativePlan healthy_plan(healthy), poisoned_plan(poisoned);
    for (int step = 0; step < kSteps; ++step) {
      healthy_plan.step(healthy, healthy.inputs(step));
      CHECK(poisoned_plan.step(poisoned, poisoned.inputs(step)) == 0, "stale in step %d", step);
    }
    for (const size_t t : {0, 1, 3}) {
      CHECK(poisoned.tensors[t].weight == healthy.tensors[t].weight, "tensor %zu with %g in another", t, poison);
    }
    CHECK(!std::isfinite(poisoned.tensors[2].weight.get(0)), "a layer with %g moved by a finite scale", poison);
  }
}

// A carried sum that is of no use is taken anew, and the norm with it, unless that is not the sum's: then it was given.
void check_given_norms() {
  for (const double sum : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    for (const bool is_given : {false, true}) {
      Case now = case_of_four();
      NativePlan plan(now);
      std::vector<double> norms = plan.row_norm_sq;
      plan.sum_squares[2] = sum;
      plan.row_norm_sq[2] = is_given ? 5 : sum;
      if (is_given) norms[2] = 5;
      const Case before = now;
      const std::vector<Input> inputs = now.inputs(0, true);
      CHECK(plan.step(now, inputs) == 0, "a norm that was taken anew counts as stale");
      check_step(before, now, inputs, norms);
      CHECK(plan.row_norm_sq == NativePlan(now).row_norm_sq, "norms after a sum of %g", sum);
    }
  }
}

// Weights that are put back, unseen, after a step that made their norm a hundred times as large, are no stale ones.
void check_jumps() {
  Case now = case_of_four();
  NativePlan plan(now);
  const Tensor good = now.tensors[2];
  for (int64_t i = 0; i < 20001; ++i) now.tensors[2].grad.set(i, 1e4f);
  plan.step(now, now.inputs(0, true));
  now.tensors[2].weight = good.weight;
  now.tensors[2].grad = good.grad;
  const std::vector<Input> inputs = now.inputs(0, true);
  plan.place(inputs);
  const Case before = now;
  const std::vector<double> norms = plain_row_norm_sq(now);
  CHECK(plan.step(now, inputs) == 0, "what was put back counts as stale");
  check_step(before, now, inputs, norms);
}

}  // namespace

void test_carried() {
  check_first_updates<NativePlan>();
  check_chosen_layers<NativePlan>();
  check_stale_steps<NativePlan>();
  check_counts<NativePlan>();
  check_parts<NativePlan>(every_kind_of_tensor(kPartSizes, kPlainKinds));
  check_not_finite();
  check_given_norms();
  check_jumps();
}

void test_steps() {
  for (Case made : {every_kind_of_tensor(kSizes, kPlainKinds), every_kind_of_tensor(kFewerSizes, kMixedKinds)}) {
    check_steps(made);
    freeze(made);
    check_steps(made);
  }
}

void test_bits() {
  for (Case made : {every_kind_of_tensor(kSizes, kPlainKinds), every_kind_of_tensor(kFewerSizes, kMixedKinds)}) {
    check_same_bits(made);
    Case relative = made;
    make_relative(relative);
    check_same_bits(relative);
    freeze(made);
    check_same_bits(made);
  }
}

}  // namespace sasgd_test
