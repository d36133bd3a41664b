// The relative scale, on the CPU and in CUDA alike: scales by the gradients' norms of before, and what is carried of
// these. `Plan` is a NativePlan or an EmulatedPlan.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "carried.h"

namespace sasgd_test {

inline bool takes_gradient(const Case& now, size_t t) {
  const int32_t b = now.tensors[t].info.layer;
  return b >= 0 && now.layers[static_cast<size_t>(b)].scaled;
}

// CHECKs norms of gradients that were measured: those of the tensors that `is_meant`, to the float32 sums in them;
// of the others those of before.
template <class Predicate>
void check_norms(const char* what, const std::vector<double>& got, const std::vector<double>& want,
                 const std::vector<double>& before, const Predicate& is_meant) {
  for (size_t t = 0; t < got.size(); ++t) {
    if (is_meant(t)) {
      CHECK(std::fabs(got[t] - want[t]) <= 1e-6 * want[t], "%s %zu: got %.9g, want %.9g", what, t, got[t], want[t]);
    } else {
      CHECK(got[t] == before[t], "%s %zu was written: got %.9g, want %.9g", what, t, got[t], before[t]);
    }
  }
}

// The q_b that the gradient pass of a plan takes that knows none.
template <class Plan>
std::vector<double> measured_gradients(const Case& now, const std::vector<Input>& inputs) {
  Plan plan(now);
  plan.place(inputs);
  plan.measure_gradients(now, inputs);
  return plan.gradient_sums;
}

// Each step by itself, and the norms that are carried to the next one.
template <class Plan>
void check_relative_steps(Case now, int steps) {
  Plan plan(now);
  for (int step = 0; step < steps; ++step) {
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(step);
    const std::vector<double> q = plain_gradient_norm_sq(before), v = plan.gradient_norm_sq, old = plan.gradient_sums;
    const auto is_updated = [&](size_t t) { return inputs[t].grad && takes_gradient(now, t); };
    const auto is_first = [&](size_t t) { return is_updated(t) && v[t] == 0; };

    plan.measure_gradients(now, inputs);
    check_norms("first v", plan.gradient_norm_sq, q, v, is_first);
    check_norms("first q", plan.gradient_sums, q, old, is_first);
    const std::vector<double> used = plan.gradient_norm_sq;
    const std::vector<double> passed = measured_gradients<Plan>(before, inputs);

    CHECK(plan.step(now, inputs) == 0, "stale in step %d", step);
    check_step(before, now, inputs, plain_row_norm_sq(before), used);
    check_norms("q", plan.gradient_sums, q, old, is_updated);
    std::vector<double> next;
    for (size_t t = 0; t < q.size(); ++t) {
      next.push_back(0.9 * used[t] + 0.1 * q[t]);
      CHECK(!is_updated(t) || plan.gradient_sums[t] == passed[t], "q %zu: got %.17g, a gradient pass %.17g", t,
            plan.gradient_sums[t], passed[t]);
    }
    check_norms("v", plan.gradient_norm_sq, next, used, is_updated);
    CHECK(plan.row_norm_sq == Plan(now).row_norm_sq, "norms after step %d are not those of a norm pass", step);
  }
}

// Three layers that are scaled, a vector among them, one that is not, and a tensor that is no layer's.
inline Case relative_case() {
  Case made = case_of_four();
  Random random;
  made.add_tensor(20001, 0, kFloat32Kind, random);
  made.add_layer(true, 1.25);
  make_relative(made);
  made.layers[2].is_vector = false;
  made.layers[3].is_vector = true;
  return made;
}
constexpr size_t kScaled[] = {0, 2, 4};  // the last is the vector

// A gradient of zeros, of which no norm is known, moves nothing but what its momentum moves; the next one is a first.
template <class Plan>
void check_zero_gradients() {
  Case now = relative_case();
  now.groups[0].weight_decay = 0;
  Plan plan(now);
  const Numbers grad = now.tensors[0].grad;
  for (int64_t i = 0; i < 20001; ++i) now.tensors[0].grad.set(i, 0.0f);
  for (const bool has_momentum : {false, true}) {
    if (has_momentum) {
      for (int64_t i = 0; i < 20001; ++i) now.tensors[0].momentum_buffer.set(i, 0.5f);
    }
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(0, true);
    plan.measure_gradients(now, inputs);
    const std::vector<double> used = plan.gradient_norm_sq;
    plan.step(now, inputs);
    check_step(before, now, inputs, plain_row_norm_sq(before), used);
    CHECK((now.tensors[0].weight == before.tensors[0].weight) != has_momentum, "weights without a gradient");
    CHECK(used[0] == 0 && plan.gradient_norm_sq[0] == 0, "v of zeros: got %g, then %g", used[0],
          plan.gradient_norm_sq[0]);
    CHECK(!(plan.flags[0] & kGradientKnown), "a norm of 0 counts as known");
  }
  now.tensors[0].grad = grad;
  const std::vector<Input> inputs = now.inputs(0, true);
  plan.measure_gradients(now, inputs);
  const double want = plain_gradient_norm_sq(now)[0];
  CHECK(std::fabs(plan.gradient_norm_sq[0] - want) <= 1e-6 * want, "v after zeros: got %.9g, want %.9g",
        plan.gradient_norm_sq[0], want);
}

// A gradient that is not finite leaves v as it was, known or not, and everything else of the other tensors too.
template <class Plan>
void check_gradients_that_are_not_finite() {
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const bool is_known : {false, true}) {
      Case healthy = relative_case(), poisoned = healthy;
      Plan of_healthy(healthy), of_poisoned(poisoned);
      if (is_known) of_healthy.gradient_norm_sq = of_poisoned.gradient_norm_sq = {5, 0, 5, 0, 5};
      for (const size_t t : kScaled) {
        if (t != 2) poisoned.tensors[t].grad.set(t == 0 ? 5 : 20000, poison);
      }
      of_healthy.measure_gradients(healthy, healthy.inputs(0, true));
      of_healthy.step(healthy, healthy.inputs(0, true));
      of_poisoned.measure_gradients(poisoned, poisoned.inputs(0, true));
      of_poisoned.step(poisoned, poisoned.inputs(0, true));
      for (const size_t t : {0, 4}) {
        CHECK(!std::isfinite(of_poisoned.gradient_sums[t]), "q %zu with %g: got %g", t, poison,
              of_poisoned.gradient_sums[t]);
        CHECK(of_poisoned.gradient_norm_sq[t] == (is_known ? 5 : 0), "v %zu with %g: got %g", t, poison,
              of_poisoned.gradient_norm_sq[t]);
        CHECK(is_known || !(of_poisoned.flags[t] & kGradientKnown), "a norm that was not taken counts as known");
      }
      for (const size_t t : {1, 2, 3}) {
        CHECK(poisoned.tensors[t].is_same(healthy.tensors[t]) &&
                  of_poisoned.gradient_norm_sq[t] == of_healthy.gradient_norm_sq[t],
              "tensor %zu with %g in another's gradient", t, poison);
      }
    }
  }
}

// What is known is not measured, nor is what has no gradient, is not scaled or is no layer's.
template <class Plan>
void check_known_gradients() {
  const Case now = relative_case();
  Plan plan(now);
  plan.gradient_norm_sq = {5, 0, 0, 0, 0};
  plan.gradient_sums = {6, 7, 8, 9, 10};
  std::vector<Input> inputs = now.inputs(0, true);
  inputs[2].grad = 0;
  plan.measure_gradients(now, inputs);
  const double want = plain_gradient_norm_sq(now)[4];
  const std::vector<double>&v = plan.gradient_norm_sq, &q = plan.gradient_sums;
  CHECK(v[0] == 5 && v[1] == 0 && v[2] == 0 && v[3] == 0 && std::fabs(v[4] - want) <= 1e-6 * want,
        "v: got %g, %g, %g, %g, %g", v[0], v[1], v[2], v[3], v[4]);
  CHECK(q[0] == 6 && q[1] == 7 && q[2] == 8 && q[3] == 9 && q[4] == v[4], "q: got %g, %g, %g, %g, %g", q[0], q[1], q[2],
        q[3], q[4]);
}

// Without the relative scale nothing is taken of gradients.
template <class Plan>
void check_no_gradients() {
  Case now = relative_case();
  now.options.relative = false;
  Plan plan(now);
  plan.gradient_norm_sq = {5, 5, 5, 5, 5};
  plan.gradient_sums = {6, 6, 6, 6, 6};
  const std::vector<Input> inputs = now.inputs(0, true);
  plan.measure_gradients(now, inputs);
  plan.step(now, inputs);
  CHECK(plan.gradient_norm_sq == std::vector<double>(5, 5) && plan.gradient_sums == std::vector<double>(5, 6),
        "norms of gradients were taken without the relative scale");
  CHECK(plan.flags == std::vector<uint8_t>({kStarted, kStarted, kStarted, 0, kStarted}), "flags: got %d, %d",
        plan.flags[0], plan.flags[4]);
}

}  // namespace sasgd_test
