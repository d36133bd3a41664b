// The relative scale of CUDA's plans: also what the device alone decides, over several launches.
#include "../relative.h"

#include <limits>
#include <vector>

#include "emulated_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

// Around the lengths of a vector, a thread block's stride and a chunk, and two levels of the tree.
constexpr int64_t kSizes[] = {0, 1, 5, 8, 9, 1025, 8192, 8193};
constexpr int64_t kTwoLevels = 17 * 8192 + 3;
// Mixed precision has loops with vectors half as long.
constexpr int64_t kFewerSizes[] = {0, 5, 1025, 8193};
constexpr int64_t kPartSizes[] = {0, 5, 8193, 140000};  // the last with two levels of sums
constexpr int kSteps = 3;

Case big_case() {
  Case made = every_kind_of_tensor(kSizes, kPlainKinds);
  Random random;
  made.add_tensor(kTwoLevels, 1, kFloat32Kind, random);
  made.add_layer(true, 1.25);
  return made;
}

// A step after an overflow leaves no trace, nor does the gradient pass before it.
void check_overflow() {
  Case now = relative_case();
  EmulatedPlan plan(now);
  plan.gradient_sums = {6, 7, 8, 9, 10};
  const std::vector<double> sums = plan.gradient_sums;
  const Case before = now;
  const std::vector<Input> inputs = now.inputs(0, true);
  for (const double v : {0.0, 5.0}) {
    const std::vector<double> known = {v, 0, v, 0, 0};
    plan.gradient_norm_sq = known;
    plan.measure_gradients(now, inputs, true);
    plan.step(now, inputs, true);
    CHECK(plan.gradient_norm_sq == known, "an overflow changed v");
    CHECK(plan.gradient_sums == sums, "an overflow changed q");
    CHECK(plan.flags == std::vector<uint8_t>(5, 0), "an overflow left flags");
    for (size_t t = 0; t < now.tensors.size(); ++t) {
      CHECK(now.tensors[t].is_same(before.tensors[t]), "an overflow moved tensor %zu", t);
    }
  }
}

// A layer that the step before spoilt is left alone for a step, and its v with it, and goes on in the next.
void check_left_layers() {
  Case now = relative_case();
  EmulatedPlan plan(now);
  plan.gradient_norm_sq = {5, 0, 5, 0, 5};
  plan.gradient_sums = {6, 7, 8, 9, 10};
  plan.row_norm_sq[2] = plan.row_norm_sq[3] = std::numeric_limits<double>::quiet_NaN();
  for (const bool is_left : {true, false}) {
    const std::vector<double> used = plan.gradient_norm_sq;
    const std::vector<Input> inputs = now.inputs(0, true);
    const Case before = now;
    plan.step(now, inputs);
    for (const size_t t : {2, 4}) {
      now.tensors[t].started = !is_left;
      CHECK(now.tensors[t].is_same(before.tensors[t]) == is_left, "tensor %zu after a norm that is no number", t);
      CHECK((plan.gradient_norm_sq[t] == 5) == is_left, "v %zu: got %g", t, plan.gradient_norm_sq[t]);
      CHECK((plan.gradient_sums[t] == (t == 2 ? 8 : 10)) == is_left, "q %zu: got %g", t, plan.gradient_sums[t]);
      CHECK(plan.flags[t] == (is_left ? 0 : kStarted | kGradientKnown), "flags %zu: got %d", t, plan.flags[t]);
    }
    if (!is_left) check_step(before, now, inputs, plain_row_norm_sq(before), used);
    CHECK(plan.gradient_norm_sq[0] != 5, "v of another layer");
  }
}

// The device says of which gradients it knows a norm.
void check_flags_of_gradients() {
  Case now = relative_case();
  EmulatedPlan plan(now);
  std::vector<Input> inputs = now.inputs(0, true);
  inputs[0].grad = 0;
  plan.measure_gradients(now, inputs);
  CHECK((plan.flags == std::vector<uint8_t>{0, 0, kGradientKnown, 0, kGradientKnown}), "flags after a gradient pass");
  plan.gradient_norm_sq[0] = 5;  // by the host
  plan.step(now, now.inputs(0, true));
  constexpr uint8_t kBoth = kStarted | kGradientKnown;
  CHECK((plan.flags == std::vector<uint8_t>{kBoth, kStarted, kBoth, 0, kBoth}), "flags after a step: got %d, %d",
        plan.flags[0], plan.flags[2]);
}

// More tensors and groups than fit the arguments of one launch.
void check_several_launches() {
  Case now;
  Random random;
  for (int32_t t = 0; t < 700; ++t) {
    now.groups.push_back({0.1 + t * 0.001, 0.9, 0, 0.01, false, false});
    now.add_tensor(5, t, kFloat32Kind, random);
    if (t % 2 == 0) now.add_layer(true, t % 4 == 0 ? 1.25 : 0.8);
  }
  make_relative(now);
  check_relative_steps<EmulatedPlan>(now, 2);
}

}  // namespace

void test_cuda_relative() {
  for (Case made : {big_case(), every_kind_of_tensor(kFewerSizes, kMixedKinds)}) {
    make_relative(made);
    check_relative_steps<EmulatedPlan>(made, kSteps);
    made.options.shape_decay = true;
    check_relative_steps<EmulatedPlan>(made, kSteps);
  }
  check_zero_gradients<EmulatedPlan>();
  check_gradients_that_are_not_finite<EmulatedPlan>();
  check_known_gradients<EmulatedPlan>();
  check_no_gradients<EmulatedPlan>();
  check_overflow();
  check_left_layers();
  check_flags_of_gradients();
  check_several_launches();
  Case parted = every_kind_of_tensor(kPartSizes, kPlainKinds);
  make_relative(parted);
  check_parts<EmulatedPlan>(parted);
}

}  // namespace sasgd_test
