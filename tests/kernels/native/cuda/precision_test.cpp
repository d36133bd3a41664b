// Mixed precision: every rounding to the bit, what is counted, and nobody else's memory.
#include <cstdint>
#include <vector>

#include "../check.h"
#include "../double_loop.h"
#include "../precisions.h"
#include "emulated_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

constexpr int64_t kSizes[] = {1, 5, 1025, 20001};

// After a step that was skipped, which counts for nothing.
void check_exact_steps() {
  Case now = exact_case(kSizes);
  EmulatedPlan plan(now);
  const Case before = now;
  const std::vector<int64_t> counts = plan.rounding_steps;
  const std::vector<Input> inputs = now.inputs(0, true);
  plan.step(now, inputs, true);
  for (size_t t = 0; t < now.tensors.size(); ++t) {
    CHECK(now.tensors[t].is_same(before.tensors[t]), "an overflow moved tensor %zu", t);
  }
  CHECK(plan.rounding_steps == counts, "an overflow counts as a rounding step");
  plan.step(now, inputs);
  check_exactly(before, now);
}

void check_poisoned() {
  Case now = poisoned_case();
  EmulatedPlan plan(now);
  for (int step = 0; step < 2; ++step) {
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(0, true);
    plan.step(now, inputs);
    check_step(before, now, inputs, {});
  }
}

void check_neighbours() {
  Case now = guarded_case();
  EmulatedPlan plan(now);
  const Case before = now;
  const std::vector<Input> inputs = guarded_inputs(now);
  plan.place(inputs);
  plan.step(now, inputs);
  check_guards(before, now);
}

}  // namespace

void test_cuda_precision() {
  check_exact_steps();
  check_poisoned();
  check_neighbours();
}

}  // namespace sasgd_test
