// The relative scale of the CPU's plans.
#include "relative.h"

#include "native_plan.h"
#include "tests.h"

namespace sasgd_test {
namespace {

constexpr int64_t kSizes[] = {0, 1, 8, 15, 16, 17, 1023, 1024, 1025, 16383, 16384, 16385, 40000};
// Mixed precision goes through the same loops.
constexpr int64_t kFewerSizes[] = {0, 1, 17, 1025, 16385};
constexpr int64_t kPartSizes[] = {0, 5, 16385, 300000};  // the last in several tasks
constexpr int kSteps = 3;

// A step takes the norms that are not known by itself.
void check_first_steps() {
  for (const size_t known : {0, 4}) {
    Case told = relative_case(), untold = told;
    NativePlan of_told(told, 2), of_untold(untold, 2);
    of_told.gradient_norm_sq[known] = of_untold.gradient_norm_sq[known] = 1e4;
    of_told.measure_gradients(told, told.inputs(0, true));
    of_told.step(told, told.inputs(0, true));
    of_untold.step(untold, untold.inputs(0, true));
    for (size_t t = 0; t < told.tensors.size(); ++t) {
      CHECK(untold.tensors[t].is_same(told.tensors[t]), "tensor %zu, whose norm the step takes by itself", t);
    }
    CHECK(of_untold.gradient_norm_sq == of_told.gradient_norm_sq, "norms that a step takes by itself");
  }
}

}  // namespace

void test_relative() {
  for (Case made : {every_kind_of_tensor(kSizes, kPlainKinds), every_kind_of_tensor(kFewerSizes, kMixedKinds)}) {
    make_relative(made);
    check_relative_steps<NativePlan>(made, kSteps);
    made.options.shape_decay = true;
    check_relative_steps<NativePlan>(made, kSteps);
  }
  check_first_steps();
  check_zero_gradients<NativePlan>();
  check_gradients_that_are_not_finite<NativePlan>();
  check_known_gradients<NativePlan>();
  check_no_gradients<NativePlan>();
  Case parted = every_kind_of_tensor(kPartSizes, kPlainKinds);
  make_relative(parted);
  check_parts<NativePlan>(parted);
}

}  // namespace sasgd_test
