#include "bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../python_arguments.h"
#include "step.h"

namespace sasgd {
namespace {

void step(CudaPlan& plan, const py::buffer& grads, const py::buffer& grad_dtypes, const py::buffer& values,
          const py::buffer& lr_addresses, uint64_t grad_scale, uint64_t found_inf, bool measures_gradients,
          uint64_t stream) {
  const Array<uint64_t> lrs("lr_addresses", lr_addresses, static_cast<size_t>(plan.group_count()), Length::kAtLeast);
  const StepArguments now(plan, grads, grad_dtypes, values);
  const DeviceNumbers numbers{grad_scale, found_inf};
  const py::gil_scoped_release unlocked;
  const auto run = [&](auto pass) {
    (plan.*pass)(now.grads.data(), now.grad_dtypes.data(), now.groups.data(), lrs.data(), numbers, stream);
  };
  if (measures_gradients) run(&CudaPlan::measure_gradients);
  run(&CudaPlan::step);
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_devices", &cuda_devices, py::call_guard<py::gil_scoped_release>(),
        "How many devices the driver sees; raises RuntimeError, which says why, where there is no driver.");
  m.def(
      "check_cuda_device", [](int device) { resident_thread_blocks(device); }, py::arg("device"),
      py::call_guard<py::gil_scoped_release>(),
      "Raises RuntimeError, which says why, where a device cannot run a step.");
  m.attr("CUDA_VERSION") = cuda_version();
  m.attr("CUDA_ARCHITECTURES") = cuda_architectures();
  // Local, because the tests load a second module with this type.
  py::class_<CudaPlan> plan(m, "CudaPlan", py::module_local(),
                            "Plans steps on one device and launches them; see csrc/cuda/step.h.");
  plan.def(py::init([](int device, const TensorTuples& tensors, const LayerTuples& layers, double eps, bool shape_decay,
                       bool track_norms, bool relative, const PrecisionTuples& precision) {
             PlanSpec spec = checked_spec(tensors, layers, precision, {eps, shape_decay, track_norms, relative});
             const py::gil_scoped_release unlocked;
             return std::make_unique<CudaPlan>(device, std::move(spec));
           }),
           py::kw_only(), py::arg("device"), py::arg("tensors"), py::arg("layers"), py::arg("eps"),
           py::arg("shape_decay"), py::arg("track_norms"), py::arg("relative") = false,
           py::arg("precision") = PrecisionTuples{});
  plan.def(
      "attach",
      [](CudaPlan& plan, uint64_t tables, uint64_t row_norm_sq, uint64_t sum_squares, uint64_t stale_steps,
         uint64_t flags, uint64_t rounding_steps, uint64_t gradient_norm_sq, uint64_t gradient_sums, uint64_t stream) {
        if (tables % 32 != 0) throw std::invalid_argument("tables: got an address that is not aligned, want 32 bytes");
        const CarriedState state = checked_state(plan, row_norm_sq, sum_squares, stale_steps, flags, rounding_steps,
                                                 gradient_norm_sq, gradient_sums);
        const py::gil_scoped_release unlocked;
        plan.attach(tables, state, stream);
      },
      py::arg("tables"), py::arg("row_norm_sq"), py::arg("sum_squares"), py::arg("stale_steps"), py::arg("flags"),
      py::arg("rounding_steps"), py::arg("gradient_norm_sq"), py::arg("gradient_sums"), py::arg("stream"));
  bind_plan<CudaPlan, uint64_t>(plan, py::arg("stream"));
  plan.def("step", &step, py::arg("grads"), py::arg("grad_dtypes"), py::arg("values"), py::arg("lr_addresses"),
           py::arg("grad_scale"), py::arg("found_inf"), py::arg("measures_gradients"), py::arg("stream"));
  plan.def("is_capturing", &CudaPlan::is_capturing, py::arg("stream"));
  plan.def_property_readonly("table_bytes", &CudaPlan::table_bytes);
  plan.def_readwrite("max_thread_blocks", &CudaPlan::max_thread_blocks);
}

}  // namespace sasgd
