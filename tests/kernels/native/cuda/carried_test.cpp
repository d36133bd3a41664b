// What CUDA carries from step to step: also what the device alone decides, over several launches.
#include "../carried.h"

#include <limits>
#include <vector>

#include "control.h"
#include "emulated_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

// Everything that a skipped step must leave as it is.
bool is_same(const Case& a, const Case& b) {
  for (size_t t = 0; t < a.tensors.size(); ++t) {
    if (!a.tensors[t].is_same(b.tensors[t])) return false;
  }
  return true;
}

// A step after an overflow leaves no trace, and the next one is a first update still.
void check_overflow() {
  for (const bool track_norms : {true, false}) {
    Case now = case_of_four();
    now.options.track_norms = track_norms;
    EmulatedPlan plan(now);
    const Case before = now;
    const std::vector<double> norms = plan.row_norm_sq;
    const std::vector<Input> inputs = now.inputs(0, true);
    plan.step(now, inputs, true);
    CHECK(is_same(now, before), "an overflow moved something");
    CHECK(plan.row_norm_sq == norms, "an overflow changed norms");
    CHECK(plan.flags == std::vector<uint8_t>(4, 0), "an overflow left flags");
    plan.step(now, inputs);
    check_step(before, now, inputs, plain_row_norm_sq(before));
    const uint8_t kept = track_norms ? 0 : kNormKept;
    check_flags(plan, {static_cast<uint8_t>(kStarted | kept), kStarted, static_cast<uint8_t>(kStarted | kept), 0},
                "after a step");
  }
}

// A layer that a step spoilt and that was put back unseen is left alone for a step, and goes on in the next.
void check_recovery() {
  for (const float spoilt : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case now = case_of_four();
    EmulatedPlan plan(now);
    const Tensor good = now.tensors[2];
    std::vector<Input> inputs = now.inputs(0, true);
    now.tensors[2].grad.set(0, spoilt);
    plan.step(now, inputs);
    now.tensors[2] = good;  // which has had no update
    plan.flags[2] = 0;
    for (const bool is_left : {true, false}) {
      inputs = now.inputs(0, true);
      plan.place(inputs);
      const Case before = now;
      plan.step(now, inputs);
      now.tensors[2].started = !is_left;
      CHECK(now.tensors[2].is_same(before.tensors[2]) == is_left, "put back, after %g", spoilt);
      if (!is_left) check_step(before, now, inputs, plain_row_norm_sq(before));
      CHECK(plan.flags[2] == (is_left ? 0 : kStarted), "flags of what was put back: got %d", plan.flags[2]);
      CHECK(plan.row_norm_sq == EmulatedPlan(now).row_norm_sq, "norms of what was put back");
    }
    CHECK((plan.stale_steps == std::vector<int64_t>{0, 0, 0}), "what was put back was taken for stale");
  }
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
  EmulatedPlan plan(now);
  for (int step = 0; step < 2; ++step) {
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(step);
    plan.step(now, inputs);
    check_step(before, now, inputs, plain_row_norm_sq(before));
  }
  CHECK(plan.row_norm_sq == EmulatedPlan(now).row_norm_sq, "norms after two steps");
}

// A step of one tensor launches no more thread blocks than it has chunks, wherever it stands among others.
void check_short_launches() {
  sasgd_emulation::settings().multiprocessors = 8;
  Case now = case_of_four();
  Random random;
  now.add_tensor(5, 0, kFloat32Kind, random);
  EmulatedPlan plan(now);
  for (size_t t = 0; t < now.tensors.size(); ++t) {
    std::vector<Input> inputs = now.inputs(0, true);
    for (size_t other = 0; other < inputs.size(); ++other) {
      if (other != t) inputs[other].grad = 0;
    }
    plan.step(now, inputs);
    const unsigned got = sasgd_emulation::stream_operations().back().blocks, want = t < 4 ? 3 : 1;
    CHECK(got == want, "tensor %zu: got %u thread blocks, want %u", t, got, want);
  }
  const size_t steps = sasgd_emulation::stream_operations().size();
  std::vector<Input> idle = now.inputs(0, true);
  for (Input& input : idle) input.grad = 0;
  plan.step(now, idle);
  CHECK(sasgd_emulation::stream_operations().size() == steps, "a step without gradients was launched");
  sasgd_emulation::reset();
}

constexpr int64_t kPartSizes[] = {0, 5, 8193, 140000};  // the last with two levels of sums

}  // namespace

void test_cuda_carried() {
  check_overflow();
  check_first_updates<EmulatedPlan>();
  check_chosen_layers<EmulatedPlan>();
  check_stale_steps<EmulatedPlan>();
  check_counts<EmulatedPlan>();
  check_parts<EmulatedPlan>(every_kind_of_tensor(kPartSizes, kPlainKinds));
  check_short_launches();
  check_recovery();
  check_several_launches();
}

}  // namespace sasgd_test
