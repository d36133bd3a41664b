// The Python module: checks what comes in, and knows neither torch nor tensors, only addresses and numbers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/step.h"

namespace py = pybind11;

namespace sasgd {
namespace {

constexpr size_t kValuesPerGroup = 6;

enum class Length { kExact, kAtLeast };

// A view of a contiguous Python buffer (array.array, bytes) of the expected length.
template <class T>
class Array {
 public:
  Array(const char* name, const py::buffer& buffer, size_t length, Length kind = Length::kExact) {
    if (PyObject_GetBuffer(buffer.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    const size_t bytes = static_cast<size_t>(view_.len), wanted = length * sizeof(T);
    if (kind == Length::kExact ? bytes != wanted : bytes < wanted) {
      PyBuffer_Release(&view_);
      throw std::invalid_argument(std::string(name) + ": got " + std::to_string(bytes) + " bytes, want " +
                                  (kind == Length::kExact ? "" : "at least ") + std::to_string(length) + " items of " +
                                  std::to_string(sizeof(T)));
    }
  }
  ~Array() { PyBuffer_Release(&view_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  const T* data() const { return static_cast<const T*>(view_.buf); }
  const T& operator[](size_t i) const { return data()[i]; }

 private:
  Py_buffer view_;
};

DType checked_dtype(const char* name, int code) {
  if (code < 0 || code > static_cast<int>(DType::kFloat16)) {
    throw std::invalid_argument(std::string(name) + ": got dtype code " + std::to_string(code) + ", want 0, 1 or 2");
  }
  return static_cast<DType>(code);
}

void check_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", want 1 or more");
}

std::unique_ptr<CpuPlan> make_plan(const std::vector<std::tuple<int64_t, int, int>>& tensors,
                                   const std::vector<std::tuple<int, bool, double, double>>& blocks, double eps,
                                   double output_factor, bool shape_decay, bool track_norms) {
  std::vector<TensorInfo> tensor_infos;
  for (const auto& [numel, group, dtype] : tensors) {
    if (numel < 0) throw std::invalid_argument("tensors: got a size of " + std::to_string(numel) + ", want 0 or more");
    if (group < 0 || group == std::numeric_limits<int>::max()) {
      throw std::invalid_argument("tensors: got group " + std::to_string(group) + ", want a small number from 0 on");
    }
    tensor_infos.push_back({numel, group, -1, checked_dtype("tensors", dtype)});
  }
  std::vector<BlockInfo> block_infos;
  for (const auto& [tensor, scaled, rows, columns] : blocks) {
    if (tensor < 0 || static_cast<size_t>(tensor) >= tensor_infos.size()) {
      throw std::invalid_argument("blocks: got tensor " + std::to_string(tensor) + ", want less than " +
                                  std::to_string(tensor_infos.size()));
    }
    tensor_infos[tensor].block = static_cast<int32_t>(block_infos.size());
    block_infos.push_back({tensor, scaled, rows, columns});
  }
  return std::make_unique<CpuPlan>(std::move(tensor_infos), std::move(block_infos),
                                   PlanOptions{eps, output_factor, shape_decay, track_norms});
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
             const py::buffer& grad_dtypes, const py::buffer& first, const py::buffer& values, double loss_scale,
             int threads) {
  const size_t count = plan.tensors().size();
  const Array<uint64_t> weight_addresses("weights", weights, count);
  const Array<uint64_t> grad_addresses("grads", grads, count);
  const Array<uint64_t> buffer_addresses("momentum_buffers", momentum_buffers, count);
  const Array<uint8_t> dtypes("grad_dtypes", grad_dtypes, count);
  const Array<uint8_t> firsts("first", first, count);
  // Groups without tensors may follow those that the plan knows of.
  const size_t group_count = static_cast<size_t>(plan.group_count());
  const Array<double> numbers("values", values, group_count * kValuesPerGroup, Length::kAtLeast);
  check_threads(threads);

  std::vector<GroupValues> groups;
  for (const double* v = numbers.data(); groups.size() < group_count; v += kValuesPerGroup) {
    groups.push_back({v[0], v[1], v[2], v[3], v[4] != 0, v[5] != 0});
  }
  std::vector<TensorStep> steps(count);
  for (size_t t = 0; t < count; ++t) {
    const TensorInfo& tensor = plan.tensors()[t];
    const DType grad_dtype = checked_dtype("grad_dtypes", dtypes[t]);
    if (grad_dtype != tensor.dtype && grad_dtype != DType::kFloat32) {
      throw std::invalid_argument("grad_dtypes: tensor " + std::to_string(t) +
                                  " has a 16-bit gradient of another dtype, want its own or float32");
    }
    steps[t] = {weight_addresses[t], grad_addresses[t], buffer_addresses[t], grad_dtype, firsts[t] != 0};
    if (!steps[t].grad || tensor.numel == 0) continue;
    if (!steps[t].weight || (!steps[t].momentum_buffer && groups[tensor.group].momentum != 0)) {
      throw std::invalid_argument("weights, momentum_buffers: got a null address for tensor " + std::to_string(t));
    }
  }
  const py::gil_scoped_release unlocked;
  return plan.step(steps.data(), groups.data(), loss_scale, threads);
}

void set_row_norm_sq(CpuPlan& plan, size_t block, double value) {
  if (block >= plan.row_norm_sq.size()) {
    throw std::invalid_argument("block: got " + std::to_string(block) + ", want less than " +
                                std::to_string(plan.row_norm_sq.size()));
  }
  plan.row_norm_sq[block] = value;
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
           py::arg("output_factor"), py::arg("shape_decay"), py::arg("track_norms"))
      .def("measure", &measure, py::arg("weights"), py::arg("chosen_blocks"), py::arg("threads"))
      .def("step", &step, py::arg("weights"), py::arg("grads"), py::arg("momentum_buffers"), py::arg("grad_dtypes"),
           py::arg("first"), py::arg("values"), py::arg("loss_scale"), py::arg("threads"))
      .def("set_row_norm_sq", &set_row_norm_sq, py::arg("block"), py::arg("value"))
      .def_readonly("row_norm_sq", &CpuPlan::row_norm_sq)
      .def_readonly("stale_steps", &CpuPlan::stale_steps);
}
