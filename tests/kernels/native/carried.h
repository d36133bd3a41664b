// What is carried from step to step, on the CPU and in CUDA alike: flags, norms that are kept, norms of weights that
// were written unseen, counts. `Plan` is a NativePlan or an EmulatedPlan.
#pragma once

#include <vector>

#include "case.h"
#include "check.h"
#include "double_loop.h"

namespace sasgd_test {

using sasgd::kGradientKnown;
using sasgd::kNormKept;
using sasgd::kStarted;

// Two scaled layers, one that is not, and a tensor that is no layer's; the last without momentum.
inline Case case_of_four() {
  Case made;
  made.groups = {{0.1, 0.9, 0.5, 0.01, false, false}, {0.1, 0, 0, 0.01, false, false}};
  Random random;
  for (const bool scaled : {true, false, true}) {
    made.add_tensor(20001, 0, kFloat32Kind, random);
    made.add_layer(scaled, 1.25);
  }
  made.add_tensor(20001, 1, kFloat32Kind, random);
  return made;
}

inline void check_flags(const Carried& plan, const std::vector<uint8_t>& want, const char* when) {
  CHECK(plan.flags == want, "flags %s: got %d, %d, %d, %d", when, plan.flags[0], plan.flags[1], plan.flags[2],
        plan.flags[3]);
}

// A tensor without a gradient starts later, a norm is kept from its layer's first update, and lr = 0 is none.
template <class Plan>
void check_first_updates() {
  Case now = case_of_four();
  now.options.track_norms = false;
  Plan plan(now);
  std::vector<Input> inputs = now.inputs(0, true);
  inputs[0].grad = 0;
  now.groups[0].lr = 0;
  plan.step(now, inputs);
  check_flags(plan, {0, kStarted, kStarted, 0}, "with lr = 0");
  now.groups[0].lr = 0.1;
  plan.step(now, inputs);
  check_flags(plan, {0, kStarted, kStarted | kNormKept, 0}, "with one idle");

  const double kept = plan.row_norm_sq[2], sum = plan.sum_squares[2];
  for (const size_t t : {0, 1, 2}) now.tensors[t].weight.set(0, 7.0f);
  plan.measure({1, 1, 1});
  CHECK(plan.row_norm_sq[2] == kept && plan.sum_squares[2] == sum, "a norm pass changed a norm that is kept");
  for (const size_t b : {0, 1}) {
    CHECK(plan.row_norm_sq[b] == Plan(now).row_norm_sq[b], "a norm pass left norm %zu, which is not kept", b);
  }
  plan.row_norm_sq[0] = std::numeric_limits<double>::quiet_NaN();
  plan.step(now, now.inputs(0, true));
  check_flags(plan, {kStarted, kStarted, kStarted | kNormKept, 0}, "with a norm that is no number");
}

// A norm pass over some layers leaves the norms of the others.
template <class Plan>
void check_chosen_layers() {
  const Case now = case_of_four();
  Plan plan(now);
  const std::vector<double> measured = plan.row_norm_sq;
  plan.row_norm_sq = {5, 6, 7};
  plan.measure({1, 0, 0});
  CHECK((plan.row_norm_sq == std::vector<double>{measured[0], 6, 7}), "got %g, %g, %g", plan.row_norm_sq[0],
        plan.row_norm_sq[1], plan.row_norm_sq[2]);
  plan.measure({0, 0, 1});
  CHECK((plan.row_norm_sq == std::vector<double>{measured[0], 6, measured[2]}), "got %g, %g, %g", plan.row_norm_sq[0],
        plan.row_norm_sq[1], plan.row_norm_sq[2]);
}

// A write that nobody told of is counted in the one step that saw it, whose scales are those of before.
template <class Plan>
void check_stale_steps() {
  Case now = case_of_four();
  Plan plan(now);
  const auto steps_with_stale = [&](int64_t want, const char* when) {
    const std::vector<double> norms = plan.row_norm_sq;
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(0, true);
    const int64_t stale = plan.step(now, inputs);
    CHECK(stale == want, "%s: got %lld, want %lld", when, static_cast<long long>(stale), static_cast<long long>(want));
    check_step(before, now, inputs, norms);
    const Plan anew(now);
    CHECK(plan.row_norm_sq == anew.row_norm_sq && plan.sum_squares == anew.sum_squares, "%s: norms after the step",
          when);
  };
  const auto write = [&](size_t tensor) { now.tensors[tensor].weight.set(20000, 3.0f); };

  steps_with_stale(0, "nothing written");
  write(2);
  steps_with_stale(1, "a scaled layer written");
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

// Only what is rounded by chance, has elements and has a gradient, is counted; nothing starts without elements.
template <class Plan>
void check_counts() {
  Case now;
  now.groups = every_momentum();
  Random random;
  for (const Kind& kind : {kMixedKinds[7], kMixedKinds[7], kMixedKinds[0], kFloat32Kind, kMixedKinds[6]}) {
    now.add_tensor(20, 1, kind, random);
  }
  now.add_tensor(0, 1, kMixedKinds[7], random);
  Plan plan(now);
  plan.rounding_steps = {5, 6, 7, 8, int64_t{1} << 40, 9};
  std::vector<Input> inputs = now.inputs(0, true);
  inputs[1].grad = 0;
  inputs[5].grad = inputs[5].momentum_buffer = inputs[0].grad;  // an address, although it has no elements
  plan.place(inputs);
  plan.step(now, inputs);
  CHECK((plan.rounding_steps == std::vector<int64_t>{6, 6, 7, 8, (int64_t{1} << 40) + 1, 9}),
        "got %lld, %lld, %lld, %lld, %lld, %lld", static_cast<long long>(plan.rounding_steps[0]),
        static_cast<long long>(plan.rounding_steps[1]), static_cast<long long>(plan.rounding_steps[2]),
        static_cast<long long>(plan.rounding_steps[3]), static_cast<long long>(plan.rounding_steps[4]),
        static_cast<long long>(plan.rounding_steps[5]));
  CHECK(plan.flags[0] == kStarted && plan.flags[1] == 0 && plan.flags[5] == 0, "got flags %d, %d, %d", plan.flags[0],
        plan.flags[1], plan.flags[5]);
}

// Steps of some tensors at a time leave the bits of a step of all, whichever of them come first.
template <class Plan>
void check_parts(const Case& begin) {
  const int32_t count = static_cast<int32_t>(begin.tensors.size());
  for (const int32_t part : {1, 7}) {
    Case whole = begin, parted = begin;
    Plan of_whole(whole), of_parted(parted);
    for (int step = 0; step < 2; ++step) {
      const std::vector<Input> all = whole.inputs(0, true);
      if (begin.options.relative) of_whole.measure_gradients(whole, all);
      of_whole.step(whole, all);
      for (int32_t end = count; end > 0; end -= part) {  // as in the backward pass
        std::vector<Input> inputs = parted.inputs(0, true);
        for (int32_t t = 0; t < count; ++t) {
          if (t < end - part || t >= end) inputs[static_cast<size_t>(t)].grad = 0;
        }
        if (begin.options.relative) of_parted.measure_gradients(parted, inputs);
        CHECK(of_parted.step(parted, inputs) == 0, "stale in the part before %d", end);
      }
    }
    for (size_t t = 0; t < begin.tensors.size(); ++t) {
      CHECK(parted.tensors[t].is_same(whole.tensors[t]), "tensor %zu in parts of %d", t, part);
    }
    CHECK(of_parted.row_norm_sq == of_whole.row_norm_sq && of_parted.sum_squares == of_whole.sum_squares,
          "norms in parts of %d", part);
    CHECK(of_parted.gradient_norm_sq == of_whole.gradient_norm_sq && of_parted.gradient_sums == of_whole.gradient_sums,
          "norms of gradients in parts of %d", part);
    CHECK(of_parted.flags == of_whole.flags && of_parted.rounding_steps == of_whole.rounding_steps,
          "flags or counts in parts of %d", part);
  }
}

}  // namespace sasgd_test
