// Several steps of a plan: against a double loop, and the same bits from every instruction set and thread count.
#include <cmath>
#include <limits>
#include <string>

#include "case.h"
#include "check.h"
#include "double_loop.h"
#include "tests.h"

namespace sasgd_test {
namespace {

// Around the powers of two that lanes, spans and chunks have for their lengths, and several chunks.
constexpr int64_t kSizes[] = {0,    1,    7,    8,    9,    15,   16,    17,    31,    32,   33,
                              1023, 1024, 1025, 4095, 4096, 4097, 16383, 16384, 16385, 40000};
// What is stored out of the ordinary goes through the same loops.
constexpr int64_t kFewerSizes[] = {0, 1, 15, 16, 17, 33, 1023, 1025, 16384, 40000};
constexpr int kSteps = 4;

// Each step by itself, and the norms that are carried to the next one.
void check_steps(Case now) {
  CpuPlan plan = now.make_plan();
  const std::vector<double> measured = plan.row_norm_sq;
  const std::vector<double> at_first = plain_row_norm_sq(now);
  for (size_t b = 0; b < now.blocks.size(); ++b) {
    CHECK(std::fabs(measured[b] - at_first[b]) <= 1e-6 * at_first[b], "norm %zu: got %.9g, want %.9g", b, measured[b],
          at_first[b]);
  }
  for (int step = 0; step < kSteps; ++step) {
    const Case before = now;
    const std::vector<TensorStep> inputs = now.inputs(step);
    const int64_t stale = now.step(plan, inputs);
    CHECK(stale == 0, "step %d took %lld norms for stale", step, static_cast<long long>(stale));
    check_step(before, now, inputs, now.options.track_norms ? plain_row_norm_sq(before) : at_first);
    const bool kept = plan.row_norm_sq == (now.options.track_norms ? now.make_plan().row_norm_sq : measured);
    CHECK(kept, "norms after step %d are not those of a norm pass", step);
  }
}

// All that steps leave behind, for one instruction set and number of threads.
struct Outcome {
  Case data;
  std::vector<double> row_norm_sq;
};

Outcome run_steps(Case data, const std::string& instruction_set, int threads) {
  sasgd::use_instruction_set(instruction_set);
  CpuPlan plan = data.make_plan(threads);
  for (int step = 0; step < kSteps; ++step) {
    CHECK(data.step(plan, data.inputs(step), threads) == 0, "stale in step %d, %s", step, instruction_set.c_str());
  }
  return {data, plan.row_norm_sq};
}

void check_same_bits(const Case& data) {
  const Outcome expected = run_steps(data, "baseline", 1);
  for (const std::string& name : sasgd::instruction_sets()) {
    for (const int threads : {1, 2, 3, 7}) {
      const Outcome got = run_steps(data, name, threads);
      CHECK(got.row_norm_sq == expected.row_norm_sq, "norms, %s, %d threads", name.c_str(), threads);
      for (size_t t = 0; t < data.tensors.size(); ++t) {
        CHECK(got.data.tensors[t].is_same(expected.data.tensors[t]), "tensor %zu, %s, %d threads", t, name.c_str(),
              threads);
      }
    }
  }
}

// Two scaled blocks, one that is not, and a tensor that is no block.
Case small_case() {
  Case made;
  made.groups = every_momentum();
  Random random;
  for (const bool scaled : {true, false, true}) {
    made.add_tensor(20001, 1, kFloat32Kind, random);
    made.add_block(scaled, 1.25);
  }
  made.add_tensor(20001, 1, kFloat32Kind, random);
  return made;
}

// A write that nobody told of is counted in the one step that saw it, whose scales are those of before.
void check_stale_steps() {
  Case now = small_case();
  CpuPlan plan = now.make_plan();
  const auto steps_with_stale = [&](int64_t want, const char* when) {
    const std::vector<double> norms = plan.row_norm_sq;
    const Case before = now;
    const std::vector<TensorStep> inputs = now.inputs(0, true);
    const int64_t stale = now.step(plan, inputs);
    CHECK(stale == want, "%s: got %lld, want %lld", when, static_cast<long long>(stale), static_cast<long long>(want));
    check_step(before, now, inputs, norms);
    CHECK(plan.row_norm_sq == now.make_plan().row_norm_sq, "%s: norms after the step", when);
  };
  const auto write = [&](int32_t tensor) { now.tensors[tensor].weight.set(20000, 3.0f); };

  steps_with_stale(0, "nothing written");
  write(2);
  steps_with_stale(1, "a scaled block written");
  steps_with_stale(0, "the step after");
  write(1);
  write(3);
  steps_with_stale(0, "only others written");
  write(0);
  write(2);
  now.measure(plan, {1, 0, 0});
  steps_with_stale(1, "two written, one of them measured");
  CHECK((plan.stale_steps == std::vector<int64_t>{0, 0, 2}), "got %lld, %lld, %lld",
        static_cast<long long>(plan.stale_steps[0]), static_cast<long long>(plan.stale_steps[1]),
        static_cast<long long>(plan.stale_steps[2]));
}

// A norm pass over some blocks leaves the norms of the others.
void check_chosen_blocks() {
  const Case now = small_case();
  CpuPlan plan = now.make_plan();
  const double measured = plan.row_norm_sq[0];
  plan.row_norm_sq = {5, 6, 7};
  now.measure(plan, {1, 0, 0});
  CHECK((plan.row_norm_sq == std::vector<double>{measured, 6, 7}), "got %g, %g, %g", plan.row_norm_sq[0],
        plan.row_norm_sq[1], plan.row_norm_sq[2]);
}

// A block that is not finite leaves the others as they are, and is not taken for stale.
void check_not_finite() {
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case healthy = small_case(), poisoned = healthy;
    poisoned.tensors[2].weight.set(5, poison);
    CpuPlan healthy_plan = healthy.make_plan(), poisoned_plan = poisoned.make_plan();
    for (int step = 0; step < kSteps; ++step) {
      healthy.step(healthy_plan, healthy.inputs(step));
      CHECK(poisoned.step(poisoned_plan, poisoned.inputs(step)) == 0, "stale in step %d", step);
    }
    for (const size_t t : {0, 1, 3}) {
      CHECK(poisoned.tensors[t].weight == healthy.tensors[t].weight, "tensor %zu with %g in another", t, poison);
    }
    CHECK(!std::isfinite(poisoned.tensors[2].weight.get(0)), "a block with %g moved by a finite scale", poison);
  }
}

}  // namespace

void test_steps() {
  for (Case made : {every_kind_of_tensor(kSizes, kOrdinary), every_kind_of_tensor(kFewerSizes, kExtraordinary)}) {
    check_steps(made);
    freeze(made);
    check_steps(made);
  }
  check_stale_steps();
  check_chosen_blocks();
  check_not_finite();
}

void test_bits() {
  for (Case made : {every_kind_of_tensor(kSizes, kOrdinary), every_kind_of_tensor(kFewerSizes, kExtraordinary)}) {
    check_same_bits(made);
    freeze(made);
    check_same_bits(made);
  }
}

}  // namespace sasgd_test
