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

std::unique_ptr<CudaPlan> make_plan(int device, const TensorTuples& tensors, const BlockTuples& blocks, double eps,
                                    bool shape_decay, bool track_norms, const StorageTuples& storage) {
  Layout layout = checked_layout(tensors, blocks, storage);
  const py::gil_scoped_release unlocked;
  return std::make_unique<CudaPlan>(device, std::move(layout.tensors), std::move(layout.blocks),
                                    PlanOptions{eps, shape_decay, track_norms});
}

void attach(CudaPlan& plan, uint64_t tables, uint64_t row_norm_sq, uint64_t stale_steps, uint64_t flags,
            uint64_t rounding_steps, uint64_t stream) {
  if (tables % 16 != 0) throw std::invalid_argument("tables: got an address that is not aligned, want 16 bytes");
  const py::gil_scoped_release unlocked;
  plan.attach({tables, row_norm_sq, stale_steps, flags, rounding_steps}, stream);
}

// A weight whose memory was taken away for a time has no address.
void check_weight(const CudaPlan& plan, size_t t) {
  const bool has_address = t < plan.weight_addresses.size() && plan.weight_addresses[t];
  if (plan.tensors()[t].numel && !has_address) {
    throw std::invalid_argument("weights: got a null address for tensor " + std::to_string(t));
  }
}

void place(CudaPlan& plan, const py::buffer& weights, const py::buffer& momentum_buffers, const py::buffer& copies,
           uint64_t stream) {
  const size_t count = plan.tensors().size();
  const Array<uint64_t> weight_addresses("weights", weights, count);
  const Array<uint64_t> buffer_addresses("momentum_buffers", momentum_buffers, count);
  const Array<uint64_t> copy_addresses("copies", copies, count);
  for (size_t t = 0; t < count; ++t) {
    check_copy(plan.tensors()[t], t, copy_addresses[t]);
  }
  plan.weight_addresses.assign(weight_addresses.data(), weight_addresses.data() + count);
  const py::gil_scoped_release unlocked;
  plan.place(weight_addresses.data(), buffer_addresses.data(), copy_addresses.data(), stream);
}

void measure(CudaPlan& plan, const py::buffer& chosen_blocks, uint64_t stream) {
  const Array<uint8_t> chosen("chosen_blocks", chosen_blocks, plan.blocks().size());
  for (size_t b = 0; b < plan.blocks().size(); ++b) {
    if (chosen[b]) check_weight(plan, static_cast<size_t>(plan.blocks()[b].tensor));
  }
  const py::gil_scoped_release unlocked;
  plan.measure(chosen.data(), stream);
}

void step(CudaPlan& plan, const py::buffer& grads, const py::buffer& grad_dtypes, const py::buffer& values,
          const py::buffer& lr_addresses, uint64_t grad_scale, uint64_t found_inf, uint64_t stream) {
  const size_t count = plan.tensors().size();
  const Array<uint64_t> grad_addresses("grads", grads, count);
  const Array<uint8_t> dtypes("grad_dtypes", grad_dtypes, count);
  const std::vector<GroupValues> groups = group_values(values, plan.group_count());
  const Array<uint64_t> lrs("lr_addresses", lr_addresses, groups.size(), Length::kAtLeast);
  for (size_t t = 0; t < count; ++t) {
    checked_grad_dtype(plan.tensors()[t], t, dtypes[t]);
    if (grad_addresses[t]) check_weight(plan, t);
  }
  const py::gil_scoped_release unlocked;
  plan.step(grad_addresses.data(), dtypes.data(), groups.data(), lrs.data(), {grad_scale, found_inf}, stream);
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
      .def(py::init(&make_plan), py::kw_only(), py::arg("device"), py::arg("tensors"), py::arg("blocks"),
           py::arg("eps"), py::arg("shape_decay"), py::arg("track_norms"), py::arg("storage") = StorageTuples{})
      .def("attach", &attach, py::arg("tables"), py::arg("row_norm_sq"), py::arg("stale_steps"), py::arg("flags"),
           py::arg("rounding_steps"), py::arg("stream"))
      .def("place", &place, py::arg("weights"), py::arg("momentum_buffers"), py::arg("copies"), py::arg("stream"))
      .def("is_capturing", &CudaPlan::is_capturing, py::arg("stream"))
      .def("measure", &measure, py::arg("chosen_blocks"), py::arg("stream"))
      .def("step", &step, py::arg("grads"), py::arg("grad_dtypes"), py::arg("values"), py::arg("lr_addresses"),
           py::arg("grad_scale"), py::arg("found_inf"), py::arg("stream"))
      .def_property_readonly("table_bytes", &CudaPlan::table_bytes)
      .def_property_readonly("sum_squares_offset", &CudaPlan::sum_squares_offset)
      .def_readwrite("max_blocks", &CudaPlan::max_blocks)
      .def_readonly("steps", &CudaPlan::steps_done);
}

}  // namespace sasgd
