// A CpuPlan for a Case.
#pragma once

#include "case.h"
#include "cpu/step.h"

namespace sasgd_test {

class NativePlan : public Carried {
 public:
  // Its norms are measured.
  explicit NativePlan(const Case& made, int threads = 1)
      : Carried(made), plan_({made.infos(), made.layers, made.options}, [threads] { return threads; }) {
    plan_.attach(state());
    place(made.inputs(0, true));
    measure(std::vector<uint8_t>(made.layers.size(), 1));
  }

  void place(const std::vector<Input>& inputs) {
    plan_.place(each(inputs, &Input::weight), each(inputs, &Input::momentum_buffer), each(inputs, &Input::param));
  }

  void measure(const std::vector<uint8_t>& chosen) { plan_.measure(chosen.data()); }

  void measure_gradients(const Case& made, const std::vector<Input>& inputs) {
    const std::vector<DType> dtypes = each(inputs, &Input::grad_dtype);
    plan_.measure_gradients(each(inputs, &Input::grad).data(), reinterpret_cast<const uint8_t*>(dtypes.data()),
                            made.groups.data(), made.loss_scale);
  }

  // Returns how many layers it found stale.
  int64_t step(Case& made, const std::vector<Input>& inputs) {
    const std::vector<DType> dtypes = each(inputs, &Input::grad_dtype);
    const int64_t stale = plan_.step(each(inputs, &Input::grad).data(), reinterpret_cast<const uint8_t*>(dtypes.data()),
                                     made.groups.data(), made.loss_scale);
    made.note_step(inputs);
    return stale;
  }

 private:
  sasgd::CpuPlan plan_;
};

}  // namespace sasgd_test
