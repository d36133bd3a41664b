// Mixed precision: every rounding to the bit, numbers that are none, and nobody else's memory.
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "double_loop.h"
#include "native_plan.h"
#include "precisions.h"
#include "tests.h"

namespace sasgd_test {
namespace {

// Around a span, and several chunks.
constexpr int64_t kSizes[] = {1, 17, 1023, 1025, 40001};

void check_exact_steps() {
  Case now = exact_case(kSizes);
  NativePlan plan(now, 2);
  const Case before = now;
  plan.step(now, now.inputs(0, true));
  check_exactly(before, now);
}

void check_poisoned() {
  Case now = poisoned_case();
  NativePlan plan(now);
  for (int step = 0; step < 2; ++step) {
    const Case before = now;
    const std::vector<Input> inputs = now.inputs(0, true);
    plan.step(now, inputs);
    check_step(before, now, inputs, {});
  }
}

void check_neighbours() {
  Case now = guarded_case();
  NativePlan plan(now);
  const Case before = now;
  const std::vector<Input> inputs = guarded_inputs(now);
  plan.place(inputs);
  plan.step(now, inputs);
  check_guards(before, now);
}

// Elements whose places have more than 32 bits, without their memory: those of one chunk.
void check_far_places() {
  constexpr int64_t kCount = 1030, kStep = 6;
  constexpr uint64_t kStream = 2018;
  for (const int64_t offset : {(int64_t{1} << 32) - sasgd::kChunk, int64_t{1} << 32, int64_t{5} << 32}) {
    Numbers weight(kCount, DType::kBFloat16), grad(kCount, DType::kFloat32);
    Random random;
    for (int64_t i = 0; i < kCount; ++i) {
      weight.set(i, 1.0f);
      grad.set(i, std::floor(random.next() * 0x1p18f) * 0x1p-20f);
    }
    sasgd::RunStep run{};
    run.weight = reinterpret_cast<void*>(weight.address());
    run.grad = reinterpret_cast<const void*>(grad.address());
    run.count = kCount;
    run.dtype = DType::kBFloat16;
    run.grad_dtype = DType::kFloat32;
    run.coefficients = {1, -0.0f, 0, 0, 1, 0, 1};
    run.precision = {DType::kFloat32, false, true, kStream};
    run.offset = offset;
    run.rounding_step = kStep;
    sasgd::baseline::kKernels.update(run);
    const sasgd::RandomKey key = sasgd::random_key(kStream, kStep, offset);
    for (int64_t i = 0; i < kCount; ++i) {
      const uint32_t bits = sasgd::random_bits(static_cast<uint32_t>(offset + i), key);
      const double want = rounded(1 - grad.get(i), DType::kBFloat16, run.precision, bits);
      CHECK(weight.get(i) == want, "weight %lld: got %.9g, want %.9g", static_cast<long long>(offset + i),
            weight.get(i), want);
    }
  }
}

}  // namespace

void test_precision() {
  for (const std::string& name : sasgd::instruction_sets()) {
    sasgd::use_instruction_set(name);
    check_exact_steps();
    check_poisoned();
    check_neighbours();
  }
  check_far_places();
}

}  // namespace sasgd_test
