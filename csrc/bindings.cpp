// The Python module: checks what comes in, and knows neither torch nor tensors, only addresses and numbers.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "all_equal.h"
#include "cpu/step.h"
#include "python_arguments.h"
#if defined(SASGD_WITH_CUDA)
#include "cuda/bindings.h"
#endif

namespace sasgd {
namespace {

int64_t step(CpuPlan& plan, const py::buffer& grads, const py::buffer& grad_dtypes, const py::buffer& values,
             const py::object& lrs, const py::object& grad_scale, const py::object& found_inf,
             bool /* measures_gradients: the plan sees by itself whether it must */) {
  const StepArguments now(plan, grads, grad_dtypes, values);
  if (py::len(lrs) != 0) throw std::invalid_argument("lrs: got learning rates in tensors, want them among the values");
  if (!found_inf.is_none())
    throw std::invalid_argument("found_inf: got a flag, want None: it is for the caller to read");
  const double scale = grad_scale.is_none() ? 1.0 : static_cast<double>(py::float_(grad_scale));
  const py::gil_scoped_release unlocked;
  return plan.step(now.grads.data(), now.grad_dtypes.data(), now.groups.data(), scale);
}

void bind_cpu(py::module_& m) {
  py::class_<CpuPlan> plan(m, "CpuPlan", "Carries the layers' norms from step to step; see csrc/cpu/step.h.");
  plan.def(
      py::init([](const TensorTuples& tensors, const LayerTuples& layers, double eps, bool shape_decay,
                  bool track_norms, bool relative, const PrecisionTuples& precision, std::function<int()> threads) {
        return std::make_unique<CpuPlan>(
            checked_spec(tensors, layers, precision, {eps, shape_decay, track_norms, relative}), std::move(threads));
      }),
      py::kw_only(), py::arg("tensors"), py::arg("layers"), py::arg("eps"), py::arg("shape_decay"),
      py::arg("track_norms"), py::arg("relative") = false, py::arg("precision") = PrecisionTuples{},
      py::arg("threads"));
  plan.def(
      "attach",
      [](CpuPlan& plan, uint64_t row_norm_sq, uint64_t sum_squares, uint64_t stale_steps, uint64_t flags,
         uint64_t rounding_steps, uint64_t gradient_norm_sq, uint64_t gradient_sums) {
        plan.attach(checked_state(plan, row_norm_sq, sum_squares, stale_steps, flags, rounding_steps, gradient_norm_sq,
                                  gradient_sums));
      },
      py::arg("row_norm_sq"), py::arg("sum_squares"), py::arg("stale_steps"), py::arg("flags"),
      py::arg("rounding_steps"), py::arg("gradient_norm_sq"), py::arg("gradient_sums"));
  bind_plan<CpuPlan>(plan);
  plan.def("step", &step, py::arg("grads"), py::arg("grad_dtypes"), py::arg("values"), py::arg("lrs"),
           py::arg("grad_scale"), py::arg("found_inf"), py::arg("measures_gradients") = false);
  // What else a kernel is asked, of which there is nothing here.
  plan.def_property_readonly_static("is_on_host", [](const py::object&) { return true; });
  plan.def("stream", [](const CpuPlan&) { return py::none(); });
  plan.def("memory", [](const CpuPlan&) { return py::list(); });
}

}  // namespace
}  // namespace sasgd

PYBIND11_MODULE(_C, m) {
  using namespace sasgd;
  m.doc() = "The native kernels of sasgd_fused; sasgd_fused.backends.kernel is their only user.";
#if defined(__clang__)
  m.attr("compiler") = "Clang " __clang_version__;
#else
  m.attr("compiler") = "GCC " __VERSION__;
#endif
  m.def("instruction_sets", &instruction_sets,
        "Names of the instruction sets that can be used here, the widest first.");
  m.def("use_instruction_set", &use_instruction_set, py::arg("name"),
        "Chooses the instruction set of the whole process; results have the same bits on all.");
  m.def("prefetch_distance", &prefetch_distance, "How many elements ahead a step asks for memory.");
  m.def("use_prefetch_distance", &use_prefetch_distance, py::arg("elements"),
        "Chooses that for the whole process; it changes no bit of a result.");
  m.attr("all_equal") = py::reinterpret_steal<py::object>(PyCFunction_New(&kAllEqual, nullptr));
  bind_cpu(m);
#if defined(SASGD_WITH_CUDA)
  bind_cuda(m);
#endif
}
