// Mistakes to be noticed. What the sanitizers shall see happens in code of csrc/, although the cause is here.
#include <cstring>

#include "case.h"
#include "double_loop.h"
#include "native_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

Case float32_case(int tensors, int64_t numel) {
  Case made;
  made.groups = {{0.1, 0.9, 0, 0.01, false, false}};
  Random random;
  for (int t = 0; t < tensors; ++t) made.add_tensor(numel, 0, kFloat32Kind, random);
  return made;
}

// One number more than there is memory for.
void overrun(int64_t numel) {
  Case made = float32_case(1, numel);
  made.tensors[0].info.numel += 1;
  NativePlan plan(made);
  plan.step(made, made.inputs(0, true));
}

}  // namespace

// A weight that is wrong in its seventh digit.
void nudge_weight() {
  Case made = float32_case(1, 33);
  NativePlan plan(made);
  const Case before = made;
  const std::vector<Input> inputs = made.inputs(0, true);
  plan.step(made, inputs);
  made.tensors[0].weight.set(5, static_cast<float>(made.tensors[0].weight.get(5)) * (1 + 0x1p-19f));
  check_step(before, made, inputs, {});
}

void overrun_tail() { overrun(1025); }

void overrun_vector() { overrun(1023); }

// A parameter one number short of its master.
void overrun_param() {
  Case made;
  made.groups = {{0.1, 0.9, 0, 0.01, false, false}};
  Random random;
  made.add_tensor(33, 0, kMixedKinds[0], random);
  NativePlan plan(made);
  std::vector<Input> inputs = made.inputs(0, true);
  const Numbers shorter(32, DType::kBFloat16);
  inputs[0].param = shorter.address();
  plan.place(inputs);
  plan.step(made, inputs);
}

// A byte of 2 where the step reads a bool.
void load_bad_bool() {
  Case made = float32_case(1, 33);
  NativePlan plan(made);
  std::memset(&made.groups[0].nesterov, 2, sizeof made.groups[0].nesterov);
  plan.step(made, made.inputs(0, true));
}

// All tensors in the same memory: different tasks, and so different threads, write it.
void share_weights() {
  Case made = float32_case(64, 16384);
  NativePlan plan(made, 4);
  std::vector<Input> inputs = made.inputs(0, true);
  for (Input& input : inputs) input.weight = inputs[0].weight;
  plan.place(inputs);
  for (int step = 0; step < 10; ++step) plan.step(made, inputs);
}

}  // namespace sasgd_test
