// A CudaPlan for a Case, with memory of exactly the size that it asks for.
#pragma once

#include "../case.h"
#include "cuda/step.h"

namespace sasgd_test {

class EmulatedPlan : public Carried {
 public:
  // Its norms are measured.
  explicit EmulatedPlan(const Case& made, int32_t max_thread_blocks = 0)
      : Carried(made),
        plan_(0, {made.infos(), made.layers, made.options}),
        tables_(static_cast<size_t>(plan_.table_bytes())) {
    plan_.max_thread_blocks = max_thread_blocks;
    plan_.attach(as_address(tables_.data()), state(), 0);
    place(made.inputs(0, true));
    measure(std::vector<uint8_t>(made.layers.size(), 1));
  }

  void place(const std::vector<Input>& inputs) {
    plan_.place(each(inputs, &Input::weight), each(inputs, &Input::momentum_buffer), each(inputs, &Input::param), 0);
  }

  void measure(const std::vector<uint8_t>& chosen) { plan_.measure(chosen.data(), 0); }

  // The loss scale, and an overflow if there is one, are read by the kernel.
  void measure_gradients(const Case& made, const std::vector<Input>& inputs, bool overflow = false) {
    run(&sasgd::CudaPlan::measure_gradients, made, inputs, overflow);
  }

  // Likewise. Returns how many layers it found stale.
  int64_t step(Case& made, const std::vector<Input>& inputs, bool overflow = false) {
    const int64_t before = all_stale_steps();
    run(&sasgd::CudaPlan::step, made, inputs, overflow);
    if (!overflow) made.note_step(inputs);
    return all_stale_steps() - before;
  }

 private:
  template <class Pass>
  void run(Pass pass, const Case& made, const std::vector<Input>& inputs, bool overflow) {
    const std::vector<DType> dtypes = each(inputs, &Input::grad_dtype);
    const float scale = static_cast<float>(made.loss_scale), found_inf = overflow;
    // Learning rates are in the groups. A group without a gradient has one at an address that cannot be read.
    std::vector<uint64_t> lrs(made.groups.size(), 8);
    for (size_t t = 0; t < inputs.size(); ++t) {
      if (inputs[t].grad) lrs[static_cast<size_t>(made.tensors[t].info.group)] = 0;
    }
    (plan_.*pass)(each(inputs, &Input::grad).data(), reinterpret_cast<const uint8_t*>(dtypes.data()),
                  made.groups.data(), lrs.data(), {as_address(&scale), as_address(&found_inf)}, 0);
  }

  static uint64_t as_address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

  sasgd::CudaPlan plan_;
  std::vector<unsigned char> tables_;
};

}  // namespace sasgd_test
