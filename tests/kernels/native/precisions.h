// Cases of mixed precision, and what a step must leave of them: for the CPU and CUDA alike.
#pragma once

#include <limits>

#include "case.h"
#include "check.h"
#include "update_rule.h"

namespace sasgd_test {

// First updates whose results float32 holds exactly, so that all that they are rounded to can be told: weights of 1, a
// learning rate of 1, and gradients of up to 18 bits.
template <size_t kCount>
Case exact_case(const int64_t (&sizes)[kCount]) {
  Case made;
  made.groups = {{1, 0, 0, 0, false, false}, {1, 0.5, 0, 0, false, false}, {1, 0.5, 0, 0, true, false}};
  Random random;
  for (int32_t group = 0; group < 3; ++group) {
    for (const Kind& kind : kMixedKinds) {
      for (const int64_t numel : sizes) {
        made.add_tensor(numel, group, kind, random);
        Tensor& tensor = made.tensors.back();
        tensor.rounding_step = 3 * group + 1;
        for (int64_t i = 0; i < numel; ++i) {
          tensor.weight.set(i, 1.0f);
          tensor.grad.set(i, std::floor(random.next() * 0x1p18f) * 0x1p-20f);
        }
      }
    }
  }
  return made;
}

// x as a dtype, by chance where the tensor is stored so.
inline double rounded(double x, DType dtype, const Precision& precision, uint32_t random) {
  const float exact = static_cast<float>(x);
  if (dtype == DType::kFloat32) return x;
  if (dtype == DType::kFloat16) return plain_widen(plain_narrow(exact, kFloat16Format), kFloat16Format);
  const bool by_chance = precision.stochastic;
  return plain_widen(by_chance ? plain_narrow_by_chance(exact, random) : plain_narrow(exact, kBFloat16Format),
                     kBFloat16Format);
}

// CHECKs that weights are rounded by the lower half of their elements' random bits, momentum buffers by the upper.
inline void check_exactly(const Case& before, const Case& after) {
  for (size_t t = 0; t < before.tensors.size(); ++t) {
    const Tensor &old = before.tensors[t], &now = after.tensors[t];
    const GroupValues& group = before.groups[static_cast<size_t>(old.info.group)];
    const Precision& precision = old.info.precision;
    const sasgd::RandomKey key = sasgd::random_key(precision.stream, old.rounding_step, 0);
    for (int64_t i = 0; i < old.info.numel; ++i) {
      const uint32_t random = sasgd::random_bits(static_cast<uint32_t>(i), key);
      const double g = old.grad.get(i);
      const double weight = rounded(1 - (group.nesterov ? 1.5 * g : g), old.weight.dtype(), precision, random);
      CHECK(now.weight.get(i) == weight, "weight %zu[%lld]: got %.9g, want %.9g", t, static_cast<long long>(i),
            now.weight.get(i), weight);
      if (old.has_param()) {
        const double param = rounded(weight, old.param.dtype(), {}, 0);
        CHECK(now.param.get(i) == param, "param %zu[%lld]: got %.9g, want %.9g", t, static_cast<long long>(i),
              now.param.get(i), param);
      }
      if (group.momentum == 0) continue;
      const double buffer = rounded(g, old.momentum_buffer.dtype(), precision, random >> 16);
      CHECK(now.momentum_buffer.get(i) == buffer, "momentum %zu[%lld]: got %.9g, want %.9g", t,
            static_cast<long long>(i), now.momentum_buffer.get(i), buffer);
    }
  }
}

// Weights and gradients that are no numbers, infinite or too large for their parameters, among plain ones. The NaN is
// the one that devices make; a bit added to its lower half would make a zero of it.
inline Case poisoned_case() {
  const float nan = float_of(0x7fffffff), infinity = std::numeric_limits<float>::infinity();
  Case made;
  made.groups = every_momentum();
  Random random;
  for (int32_t group = 0; group < 3; ++group) {
    for (const Kind& kind : kMixedKinds) {
      made.add_tensor(75, group, kind, random);
      Tensor& tensor = made.tensors.back();
      int64_t i = 1;
      for (const float grad : {nan, -nan, infinity, -infinity}) tensor.grad.set(i += 6, grad);
      for (const float weight : {nan, infinity, -infinity, 7e4f, -3.4e38f}) tensor.weight.set(i += 6, weight);
      for (const int64_t last : {73, 74}) tensor.grad.set(last, last == 73 ? nan : infinity);
    }
  }
  return made;
}

// Tensors that are parts of longer ones, with so many elements of these on either side.
constexpr int64_t kGuard = 16;

inline Case guarded_case() {
  Case made;
  made.groups = every_momentum();
  Random random;
  for (const Kind& kind : kMixedKinds) {
    for (const int64_t numel : {1, 7, 16, 33, 1030}) {
      made.add_tensor(numel + 2 * kGuard, numel % 2 ? 1 : 0, kind, random);
      Tensor& tensor = made.tensors.back();
      tensor.info.numel = numel;
      tensor.weight.set(kGuard, 0.5f);
      tensor.grad.set(kGuard, 1.0f);  // which no rounding hides
    }
  }
  return made;
}

inline std::vector<Input> guarded_inputs(const Case& made) {
  std::vector<Input> inputs = made.inputs(0, true);
  for (size_t t = 0; t < inputs.size(); ++t) {
    const Tensor& tensor = made.tensors[t];
    const auto skip_guard = [](uint64_t& address, const Numbers& numbers) {
      if (address) address += kGuard * (numbers.dtype() == DType::kFloat32 ? 4 : 2);
    };
    skip_guard(inputs[t].weight, tensor.weight);
    skip_guard(inputs[t].grad, tensor.grad);
    skip_guard(inputs[t].momentum_buffer, tensor.momentum_buffer);
    skip_guard(inputs[t].param, tensor.param);
  }
  return inputs;
}

inline void check_guards(const Case& before, const Case& after) {
  for (size_t t = 0; t < before.tensors.size(); ++t) {
    const Tensor &old = before.tensors[t], &now = after.tensors[t];
    const auto is_kept = [](const Numbers& was, const Numbers& is, int64_t i) { return was.get(i) == is.get(i); };
    CHECK(!is_kept(old.weight, now.weight, kGuard), "tensor %zu was left as it is", t);
    for (int64_t i = 0; i < kGuard; ++i) {
      for (const int64_t place : {i, kGuard + old.info.numel + i}) {
        CHECK(is_kept(old.weight, now.weight, place) && is_kept(old.momentum_buffer, now.momentum_buffer, place) &&
                  (!old.has_param() || is_kept(old.param, now.param, place)),
              "tensor %zu was written at %lld, beyond its %lld elements", t, static_cast<long long>(place - kGuard),
              static_cast<long long>(old.info.numel));
      }
    }
  }
}

}  // namespace sasgd_test
