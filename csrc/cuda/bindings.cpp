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

std::unique_ptr<CudaPlan> make_plan(int device, const TensorTuples& tensors, const LayerTuples& layers, double eps,
                                    bool shape_decay, bool track_norms, const PrecisionTuples& precision) {
  Layout layout = checked_layout(tensors, layers, precision);
  const py::gil_scoped_release unlocked;
  return std::make_unique<CudaPlan>(device, std::move(layout.tensors), std::move(layout.blocks),
                                    PlanOptions{eps, shape_decay, track_norms});
}

void attach(CudaPlan& plan, uint64_t tables, uint64_t row_norm_sq, uint64_t sum_squares, uint64_t stale_steps,
            uint64_t flags, uint64_t rounding_steps, uint64_t stream) {
  if (tables % 16 != 0) throw std::invalid_argument("tables: got an address that is not aligned, want 16 bytes");
  const py::gil_scoped_release unlocked;
  plan.attach(tables, checked_state(plan, row_norm_sq, sum_squares, stale_steps, flags, rounding_steps), stream);
}

void place(CudaPlan& plan, const py::buffer& weights, const py::buffer& momentum_buffers, const py::buffer& params,
           uint64_t stream) {
  std::vector<uint64_t> of_weights = addresses(plan, "weights", weights);
  std::vector<uint64_t> of_buffers = addresses(plan, "momentum_buffers", momentum_buffers);
  std::vector<uint64_t> of_params = param_addresses(plan, params);
  const py::gil_scoped_release unlocked;
  plan.place(std::move(of_weights), std::move(of_buffers), std::move(of_params), stream);
}

void measure(CudaPlan& plan, const py::buffer& chosen, uint64_t stream) {
  const ChosenLayers layers(plan, chosen);
  const py::gil_scoped_release unlocked;
  plan.measure(layers.data(), stream);
}

void step(CudaPlan& plan, const py::buffer& grads, const py::buffer& grad_dtypes, const py::buffer& values,
          const py::buffer& lr_addresses, uint64_t grad_scale, uint64_t found_inf, uint64_t stream) {
  const Array<uint64_t> lrs("lr_addresses", lr_addresses, static_cast<size_t>(plan.group_count()), Length::kAtLeast);
  const StepArguments now(plan, grads, grad_dtypes, values);
  const py::gil_scoped_release unlocked;
  plan.step(now.grads.data(), now.grad_dtypes.data(), now.groups.data(), lrs.data(), {grad_scale, found_inf}, stream);
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_devices", &cuda_devices, py::call_guard<py::gil_scoped_release>(),
        "How many devices the driver sees; raises RuntimeError, which says why, where there is no driver.");
  m.def(
      "check_cuda_device", [](int device) { resident_blocks(device); }, py::arg("device"),
      py::call_guard<py::gil_scoped_release>(),
      "Raises RuntimeError, which says why, where a device cannot run a step.");
  m.attr("CUDA_VERSION") = cuda_version();
  m.attr("CUDA_ARCHITECTURES") = cuda_architectures();
  // Local, because the tests load a second module with this type.
  py::class_<CudaPlan>(m, "CudaPlan", py::module_local(),
                       "Plans steps on one device and launches them; see csrc/cuda/step.h.")
      .def(py::init(&make_plan), py::kw_only(), py::arg("device"), py::arg("tensors"), py::arg("layers"),
           py::arg("eps"), py::arg("shape_decay"), py::arg("track_norms"), py::arg("precision") = PrecisionTuples{})
      .def("attach", &attach, py::arg("tables"), py::arg("row_norm_sq"), py::arg("sum_squares"), py::arg("stale_steps"),
           py::arg("flags"), py::arg("rounding_steps"), py::arg("stream"))
      .def("place", &place, py::arg("weights"), py::arg("momentum_buffers"), py::arg("params"), py::arg("stream"))
      .def("is_capturing", &CudaPlan::is_capturing, py::arg("stream"))
      .def("measure", &measure, py::arg("chosen"), py::arg("stream"))
      .def("step", &step, py::arg("grads"), py::arg("grad_dtypes"), py::arg("values"), py::arg("lr_addresses"),
           py::arg("grad_scale"), py::arg("found_inf"), py::arg("stream"))
      .def_property_readonly("table_bytes", &CudaPlan::table_bytes)
      .def_readwrite("max_thread_blocks", &CudaPlan::max_thread_blocks)
      .def_property_readonly("steps", &CudaPlan::steps_done);
}

}  // namespace sasgd
