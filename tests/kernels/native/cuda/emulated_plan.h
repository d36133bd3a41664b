// A CudaPlan for a Case, with memory of exactly the size that it asks for.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../case.h"
#include "cuda/step.h"

namespace sasgd_test {

// Steps a Case by the CUDA kernels. What they carry from step to step can be read and set.
class EmulatedPlan {
 public:
  explicit EmulatedPlan(const Case& made, int32_t max_blocks = 0)
      : row_norm_sq(made.blocks.size()),
        stale_steps(made.blocks.size()),
        flags(made.tensors.size()),
        rounding_steps(made.tensors.size()),
        plan_(0, infos(made), made.blocks, made.options),
        tables_(static_cast<size_t>(plan_.table_bytes())) {
    plan_.max_blocks = max_blocks;
    for (size_t t = 0; t < rounding_steps.size(); ++t) rounding_steps[t] = made.tensors[t].rounding_step;
    plan_.attach({as_address(tables_.data()), as_address(row_norm_sq.data()), as_address(stale_steps.data()),
                  as_address(flags.data()), as_address(rounding_steps.data())},
                 0);
    place(made.inputs(0, true));
    measure(std::vector<uint8_t>(made.blocks.size(), 1));
  }
  EmulatedPlan(const EmulatedPlan&) = delete;
  EmulatedPlan& operator=(const EmulatedPlan&) = delete;

  // Takes the addresses of weights, momentum buffers and copies from there.
  void place(const std::vector<TensorStep>& inputs) {
    std::vector<uint64_t> weights, buffers, copies;
    for (const TensorStep& input : inputs) {
      weights.push_back(input.weight);
      buffers.push_back(input.momentum_buffer);
      copies.push_back(input.copy);
    }
    plan_.place(weights.data(), buffers.data(), copies.data(), 0);
  }

  void measure(const std::vector<uint8_t>& chosen) { plan_.measure(chosen.data(), 0); }

  // The loss scale, and an overflow if there is one, are read by the kernel.
  void step(const Case& made, const std::vector<TensorStep>& inputs, bool overflow = false) {
    std::vector<uint64_t> grads;
    std::vector<uint8_t> dtypes;
    for (const TensorStep& input : inputs) {
      grads.push_back(input.grad);
      dtypes.push_back(static_cast<uint8_t>(input.grad_dtype));
    }
    const float scale = static_cast<float>(made.loss_scale), found_inf = overflow;
    const std::vector<uint64_t> no_lrs(made.groups.size());
    plan_.step(grads.data(), dtypes.data(), made.groups.data(), no_lrs.data(),
               {as_address(&scale), as_address(&found_inf)}, 0);
  }

  std::vector<double> row_norm_sq;
  std::vector<int64_t> stale_steps;
  std::vector<uint8_t> flags;
  std::vector<int64_t> rounding_steps;

 private:
  static std::vector<TensorInfo> infos(const Case& made) {
    std::vector<TensorInfo> infos;
    for (const Tensor& tensor : made.tensors) infos.push_back(tensor.info);
    return infos;
  }
  static uint64_t as_address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

  sasgd::CudaPlan plan_;
  std::vector<unsigned char> tables_;
};

}  // namespace sasgd_test
