// The Python module: checks what comes in, and knows neither torch nor tensors, only addresses and numbers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/step.h"
#include "python_arguments.h"
#if defined(SASGD_WITH_CUDA)
#include "cuda/bindings.h"
#endif

namespace sasgd {
namespace {

void check_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", want 1 or more");
}

std::unique_ptr<CpuPlan> make_plan(const TensorTuples& tensors, const BlockTuples& blocks, double eps, bool shape_decay,
                                   bool track_norms, const StorageTuples& storage) {
  Layout layout = checked_layout(tensors, blocks, storage);
  return std::make_unique<CpuPlan>(std::move(layout.tensors), std::move(layout.blocks),
                                   PlanOptions{eps, shape_decay, track_norms});
}

void measure(CpuPlan& plan, const py::buffer& weights, const py::buffer& chosen_blocks, int threads) {
  const Array<uint64_t> addresses("weights", weights, plan.tensors().size());
  const Array<uint8_t> chosen("chosen_blocks", chosen_blocks, plan.blocks().size());
  check_threads(threads);
  for (size_t b = 0; b < plan.blocks().size(); ++b) {
    if (chosen[b] && !addresses[plan.blocks()[b].tensor]) {
      throw std::invalid_argument("weights: got a null address for block " + std::to_string(b));
    }
  }
  const py::gil_scoped_release unlocked;
  plan.measure(addresses.data(), chosen.data(), threads);
}

int64_t step(CpuPlan& plan, const py::buffer& weights, const py::buffer& grads, const py::buffer& momentum_buffers,
             const py::buffer& copies, const py::buffer& grad_dtypes, const py::buffer& first,
             const py::buffer& rounding_steps, const py::buffer& values, double loss_scale, int threads) {
  const size_t count = plan.tensors().size();
  const Array<uint64_t> weight_addresses("weights", weights, count);
  const Array<uint64_t> grad_addresses("grads", grads, count);
  const Array<uint64_t> buffer_addresses("momentum_buffers", momentum_buffers, count);
  const Array<uint64_t> copy_addresses("copies", copies, count);
  const Array<uint8_t> dtypes("grad_dtypes", grad_dtypes, count);
  const Array<uint8_t> firsts("first", first, count);
  const Array<int64_t> counts("rounding_steps", rounding_steps, count);
  const std::vector<GroupValues> groups = group_values(values, plan.group_count());
  check_threads(threads);

  std::vector<TensorStep> steps(count);
  for (size_t t = 0; t < count; ++t) {
    const TensorInfo& tensor = plan.tensors()[t];
    const DType grad_dtype = checked_grad_dtype(tensor, t, dtypes[t]);
    steps[t] = {weight_addresses[t], grad_addresses[t], buffer_addresses[t], grad_dtype, firsts[t] != 0,
                copy_addresses[t],   counts[t]};
    if (!steps[t].grad || tensor.numel == 0) continue;
    if (!steps[t].weight || (!steps[t].momentum_buffer && groups[tensor.group].momentum != 0)) {
      throw std::invalid_argument("weights, momentum_buffers: got a null address for tensor " + std::to_string(t));
    }
    check_copy(tensor, t, steps[t].copy);
  }
  const py::gil_scoped_release unlocked;
  return plan.step(steps.data(), groups.data(), loss_scale, threads);
}

void set_row_norm_sq(CpuPlan& plan, size_t block, double value) {
  if (block >= plan.row_norm_sq.size()) {
    throw std::invalid_argument("block: got " + std::to_string(block) + ", want less than " +
                                std::to_string(plan.row_norm_sq.size()));
  }
  plan.give_norm(block, value);
}

}  // namespace
}  // namespace sasgd

PYBIND11_MODULE(_C, m) {
  using namespace sasgd;
  m.doc() = "The native kernels of sasgd_fused; sasgd_fused.backends.native is their only user.";
#if defined(__clang__)
  m.attr("compiler") = "Clang " __clang_version__;
#else
  m.attr("compiler") = "GCC " __VERSION__;
#endif
  m.def("instruction_sets", &instruction_sets,
        "Names of the instruction sets that can be used here, the widest first.");
  m.def("use_instruction_set", &use_instruction_set, py::arg("name"),
        "Chooses the instruction set of the whole process; results have the same bits on all.");
  py::class_<CpuPlan>(m, "CpuPlan", "Carries the blocks' norms from step to step; see csrc/cpu/step.h.")
      .def(py::init(&make_plan), py::kw_only(), py::arg("tensors"), py::arg("blocks"), py::arg("eps"),
           py::arg("shape_decay"), py::arg("track_norms"), py::arg("storage") = StorageTuples{})
      .def("measure", &measure, py::arg("weights"), py::arg("chosen_blocks"), py::arg("threads"))
      .def("step", &step, py::arg("weights"), py::arg("grads"), py::arg("momentum_buffers"), py::arg("copies"),
           py::arg("grad_dtypes"), py::arg("first"), py::arg("rounding_steps"), py::arg("values"),
           py::arg("loss_scale"), py::arg("threads"))
      .def("set_row_norm_sq", &set_row_norm_sq, py::arg("block"), py::arg("value"))
      .def_readonly("row_norm_sq", &CpuPlan::row_norm_sq)
      .def_property_readonly("sum_squares", &CpuPlan::sum_squares)
      .def_readonly("stale_steps", &CpuPlan::stale_steps)
      .def_readonly("steps", &CpuPlan::steps_done);
#if defined(SASGD_WITH_CUDA)
  bind_cuda(m);
#endif
}
