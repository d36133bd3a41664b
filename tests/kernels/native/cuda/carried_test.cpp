// What is carried from step to step: flags, norms that are kept, and those of weights that were written unseen.
#include <limits>
#include <vector>

#include "../check.h"
#include "../double_loop.h"
#include "emulated_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

using sasgd::kNormKept;
using sasgd::kStarted;

// Two scaled blocks, one that is not, and a tensor that is no block; the last without momentum.
Case small_case() {
  Case made;
  made.groups = {{0.1, 0.9, 0.5, 0.01, false, false}, {0.1, 0, 0, 0.01, false, false}};
  Random random;
  for (const bool scaled : {true, false, true}) {
    made.add_tensor(9001, 0, kFloat32Kind, random);
    made.add_block(scaled, 1.25);
  }
  made.add_tensor(9001, 1, kFloat32Kind, random);
  return made;
}

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
    Case now = small_case();
    now.options.track_norms = track_norms;
    EmulatedPlan plan(now);
    const Case before = now;
    const std::vector<double> norms = plan.row_norm_sq;
    const std::vector<TensorStep> inputs = now.inputs(0, true);
    plan.step(now, inputs, true);
    CHECK(is_same(now, before), "an overflow moved something");
    CHECK(plan.row_norm_sq == norms, "an overflow changed norms");
    CHECK(plan.flags == std::vector<uint8_t>(4, 0), "an overflow left flags");
    plan.step(now, inputs);
    check_step(before, now, inputs, plain_row_norm_sq(before));
    const uint8_t kept = track_norms ? 0 : kNormKept;
    const std::vector<uint8_t> want = {static_cast<uint8_t>(kStarted | kept), kStarted,
                                       static_cast<uint8_t>(kStarted | kept), 0};
    CHECK(plan.flags == want, "flags after a step: got %d, %d, %d, %d", plan.flags[0], plan.flags[1], plan.flags[2],
          plan.flags[3]);
  }
}

// A tensor without a gradient starts later, a norm is kept from its block's first update, and lr = 0 is none.
void check_first_updates() {
  Case now = small_case();
  now.options.track_norms = false;
  EmulatedPlan plan(now);
  std::vector<TensorStep> inputs = now.inputs(0, true);
  inputs[0].grad = 0;
  now.groups[0].lr = 0;
  plan.step(now, inputs);
  CHECK((plan.flags == std::vector<uint8_t>{0, kStarted, kStarted, 0}), "with lr = 0: got %d, %d, %d, %d",
        plan.flags[0], plan.flags[1], plan.flags[2], plan.flags[3]);
  now.groups[0].lr = 0.1;
  plan.step(now, inputs);
  CHECK((plan.flags == std::vector<uint8_t>{0, kStarted, kStarted | kNormKept, 0}), "with one idle: got %d, %d, %d, %d",
        plan.flags[0], plan.flags[1], plan.flags[2], plan.flags[3]);

  const double kept = plan.row_norm_sq[2];
  for (const size_t t : {0, 1, 2}) now.tensors[t].weight.set(0, 7.0f);
  plan.measure({1, 1, 1});
  CHECK(plan.row_norm_sq[2] == kept, "a norm pass changed a norm that is kept");
  for (const size_t b : {0, 1}) {
    CHECK(plan.row_norm_sq[b] == EmulatedPlan(now).row_norm_sq[b], "a norm pass left norm %zu, which is not kept", b);
  }
}

// A write that nobody told of is counted in the one step that saw it, whose scales are those of before.
void check_stale_steps() {
  Case now = small_case();
  EmulatedPlan plan(now);
  int64_t before_all = 0;
  const auto steps_with_stale = [&](int64_t want, const char* when) {
    const std::vector<double> norms = plan.row_norm_sq;
    const Case before = now;
    const std::vector<TensorStep> inputs = now.inputs(0, true);
    plan.step(now, inputs);
    now.note_step(inputs);
    const int64_t all = plan.stale_steps[0] + plan.stale_steps[1] + plan.stale_steps[2];
    CHECK(all - before_all == want, "%s: got %lld, want %lld", when, static_cast<long long>(all - before_all),
          static_cast<long long>(want));
    before_all = all;
    check_step(before, now, inputs, norms);
    CHECK(plan.row_norm_sq == EmulatedPlan(now).row_norm_sq, "%s: norms after the step", when);
  };
  const auto write = [&](size_t tensor) { now.tensors[tensor].weight.set(9000, 3.0f); };

  steps_with_stale(0, "nothing written");
  write(2);
  steps_with_stale(1, "a scaled block written");
  steps_with_stale(0, "the step after");
  write(1);
  write(3);
  steps_with_stale(0, "only others written");
  write(0);
  write(2);
  plan.measure({1, 0, 0});
  steps_with_stale(1, "two written, one of them measured");
  CHECK((plan.stale_steps == std::vector<int64_t>{0, 0, 2}), "got %lld, %lld, %lld",
        static_cast<long long>(plan.stale_steps[0]), static_cast<long long>(plan.stale_steps[1]),
        static_cast<long long>(plan.stale_steps[2]));
}

// A block that a step spoilt and that was put back unseen is left alone for a step, and goes on in the next.
void check_recovery() {
  for (const float spoilt : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case now = small_case();
    EmulatedPlan plan(now);
    const Tensor good = now.tensors[2];
    std::vector<TensorStep> inputs = now.inputs(0, true);
    now.tensors[2].grad.set(0, spoilt);
    plan.step(now, inputs);
    now.note_step(inputs);
    now.tensors[2] = good;  // which has had no update
    plan.flags[2] = 0;
    for (const bool is_left : {true, false}) {
      inputs = now.inputs(0, true);
      plan.place(inputs);
      const Case before = now;
      plan.step(now, inputs);
      now.note_step(inputs);
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
    if (t % 2 == 0) now.add_block(true, t % 4 == 0 ? 1.25 : 0.8);
  }
  EmulatedPlan plan(now);
  for (int step = 0; step < 2; ++step) {
    const Case before = now;
    const std::vector<TensorStep> inputs = now.inputs(step);
    plan.step(now, inputs);
    now.note_step(inputs);
    check_step(before, now, inputs, plain_row_norm_sq(before));
  }
  CHECK(plan.row_norm_sq == EmulatedPlan(now).row_norm_sq, "norms after two steps");
}

}  // namespace

void test_cuda_carried() {
  check_overflow();
  check_first_updates();
  check_stale_steps();
  check_recovery();
  check_several_launches();
}

}  // namespace sasgd_test
