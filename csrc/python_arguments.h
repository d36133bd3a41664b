// What both plans take from Python, after its checks: views of buffers, tensors, layers, addresses, hyperparameters.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "plan_base.h"

namespace sasgd {

namespace py = pybind11;

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

inline DType checked_dtype(const char* name, int code) {
  if (code < 0 || code > static_cast<int>(DType::kFloat16)) {
    throw std::invalid_argument(std::string(name) + ": got dtype code " + std::to_string(code) + ", want 0, 1 or 2");
  }
  return static_cast<DType>(code);
}

// (numel, group, dtype code) of each tensor and (tensor, scaled, rows, columns, backward factor, is_vector) of each
// layer.
using TensorTuples = std::vector<std::tuple<int64_t, int, int>>;
using LayerTuples = std::vector<std::tuple<int, bool, double, double, double, bool>>;
// (dtype code of the parameter, small_momentum, stochastic, stream) of each tensor, or nothing where all are plain.
using PrecisionTuples = std::vector<std::tuple<int, bool, bool, uint64_t>>;

// Throws std::invalid_argument where a tensor cannot be stored so.
inline Precision checked_precision(const TensorInfo& tensor, const PrecisionTuples::value_type& tuple) {
  const auto& [param_dtype, small_momentum, stochastic, stream] = tuple;
  const Precision precision{checked_dtype("precision", param_dtype), small_momentum, stochastic, stream};
  if ((is_master(precision) || small_momentum) && tensor.dtype != DType::kFloat32) {
    throw std::invalid_argument("precision: got masters or small momentum of 16-bit weights, want float32 weights");
  }
  if (stochastic && tensor.dtype != DType::kBFloat16 && !small_momentum) {
    throw std::invalid_argument("precision: got stochastic rounding of a tensor that has nothing in bfloat16");
  }
  return precision;
}

inline PlanSpec checked_spec(const TensorTuples& tensors, const LayerTuples& layers, const PrecisionTuples& precision,
                             const PlanOptions& options) {
  if (!precision.empty() && precision.size() != tensors.size()) {
    throw std::invalid_argument("precision: got " + std::to_string(precision.size()) + " entries, want none or " +
                                std::to_string(tensors.size()));
  }
  if (options.relative && !options.track_norms) {
    throw std::invalid_argument("relative: got it without track_norms, want norms that follow the weights");
  }
  PlanSpec spec{{}, {}, options};
  for (const auto& [numel, group, dtype] : tensors) {
    if (numel < 0) throw std::invalid_argument("tensors: got a size of " + std::to_string(numel) + ", want 0 or more");
    if (group < 0 || group == std::numeric_limits<int>::max()) {
      throw std::invalid_argument("tensors: got group " + std::to_string(group) + ", want a small number from 0 on");
    }
    TensorInfo tensor{numel, group, -1, checked_dtype("tensors", dtype), {}};
    if (!precision.empty()) tensor.precision = checked_precision(tensor, precision[spec.tensors.size()]);
    spec.tensors.push_back(tensor);
  }
  for (const auto& [tensor, scaled, rows, columns, backward_factor, is_vector] : layers) {
    if (tensor < 0 || static_cast<size_t>(tensor) >= spec.tensors.size()) {
      throw std::invalid_argument("layers: got tensor " + std::to_string(tensor) + ", want less than " +
                                  std::to_string(spec.tensors.size()));
    }
    spec.tensors[tensor].layer = static_cast<int32_t>(spec.layers.size());
    spec.layers.push_back({{rows, backward_factor, scaled, is_vector}, tensor, columns});
    if ((backward_factor == 0) != (spec.layers[0].backward_factor == 0)) {
      throw std::invalid_argument("layers: got a backward factor for some and none (0) for others, want all or none");
    }
  }
  return spec;
}

template <class T>
T* checked_memory(const char* name, uint64_t address, size_t items) {
  if (items && !address) throw std::invalid_argument(std::string(name) + ": got a null address");
  return reinterpret_cast<T*>(address);
}

inline CarriedState checked_state(const PlanBase& plan, uint64_t row_norm_sq, uint64_t sum_squares,
                                  uint64_t stale_steps, uint64_t flags, uint64_t rounding_steps,
                                  uint64_t gradient_norm_sq, uint64_t gradient_sums) {
  const size_t layers = plan.layers().size(), tensors = plan.tensors().size();
  return {checked_memory<double>("row_norm_sq", row_norm_sq, layers),
          checked_memory<double>("sum_squares", sum_squares, layers),
          checked_memory<int64_t>("stale_steps", stale_steps, layers),
          checked_memory<uint8_t>("flags", flags, tensors),
          checked_memory<int64_t>("rounding_steps", rounding_steps, tensors),
          checked_memory<double>("gradient_norm_sq", gradient_norm_sq, tensors),
          checked_memory<double>("gradient_sums", gradient_sums, tensors)};
}

inline void check_attached(const PlanBase& plan) {
  if (!plan.tensors().empty() && !plan.state().flags) {
    throw std::invalid_argument("attach: has not been called, want it before a norm pass or a step");
  }
}

// One address for each tensor.
inline std::vector<uint64_t> addresses(const PlanBase& plan, const char* name, const py::buffer& buffer) {
  const size_t count = plan.tensors().size();
  const Array<uint64_t> array(name, buffer, count);
  return {array.data(), array.data() + count};
}

inline std::vector<uint64_t> param_addresses(const PlanBase& plan, const py::buffer& buffer) {
  std::vector<uint64_t> params = addresses(plan, "params", buffer);
  for (size_t t = 0; t < params.size(); ++t) {
    const TensorInfo& tensor = plan.tensors()[t];
    if (tensor.numel && is_master(tensor.precision) != (params[t] != 0)) {
      throw std::invalid_argument("params: tensor " + std::to_string(t) +
                                  " has an address and is no master, or is a master and has no address");
    }
  }
  return params;
}

// A weight whose memory was taken away for a time has no address.
inline void check_weight(const PlanBase& plan, size_t t) {
  if (plan.tensors()[t].numel && !plan.weights()[t]) {
    throw std::invalid_argument("weights: got a null address for tensor " + std::to_string(t));
  }
}

// Which layers a norm pass is for: a byte for each.
struct ChosenLayers : Array<uint8_t> {
  ChosenLayers(const PlanBase& plan, const py::buffer& chosen) : Array("chosen", chosen, plan.layers().size()) {
    for (size_t b = 0; b < plan.layers().size(); ++b) {
      if ((*this)[b]) check_weight(plan, static_cast<size_t>(plan.layers()[b].tensor));
    }
    check_attached(plan);
  }
};

// What a step is told of the tensors and groups that a plan knows of; groups without tensors may follow them.
struct StepArguments {
  Array<uint64_t> grads;
  Array<uint8_t> grad_dtypes;
  std::vector<GroupValues> groups;

  StepArguments(const PlanBase& plan, const py::buffer& grad_addresses, const py::buffer& dtypes,
                const py::buffer& values)
      : grads("grads", grad_addresses, plan.tensors().size()),
        grad_dtypes("grad_dtypes", dtypes, plan.tensors().size()) {
    const size_t count = static_cast<size_t>(plan.group_count());
    const Array<double> numbers("values", values, count * kValuesPerGroup, Length::kAtLeast);
    for (const double* v = numbers.data(); groups.size() < count; v += kValuesPerGroup) {
      groups.push_back({v[0], v[1], v[2], v[3], v[4] != 0, v[5] != 0});
    }
    for (size_t t = 0; t < plan.tensors().size(); ++t) check_tensor(plan, t);
    check_attached(plan);
  }

 private:
  void check_tensor(const PlanBase& plan, size_t t) const {
    const TensorInfo& tensor = plan.tensors()[t];
    const DType dtype = checked_dtype("grad_dtypes", grad_dtypes[t]);
    if (dtype != tensor.dtype && dtype != tensor.precision.param_dtype && dtype != DType::kFloat32) {
      throw std::invalid_argument("grad_dtypes: tensor " + std::to_string(t) +
                                  " has a 16-bit gradient of another dtype, want its own or float32");
    }
    if (!grads[t] || tensor.numel == 0) return;
    check_weight(plan, t);
    if (!plan.momentum_buffers()[t] && groups[tensor.group].momentum != 0) {
      throw std::invalid_argument("momentum_buffers: got a null address for tensor " + std::to_string(t));
    }
  }
};

// The methods that both plans have alike. On: what says where a call runs: a stream of CUDA, nothing on the CPU;
// `names` are those of these arguments.
template <class Plan, class... On, class Class, class... Names>
void bind_plan(Class& bound, const Names&... names) {
  bound.def(
      "place",
      [](Plan& plan, const py::buffer& weights, const py::buffer& momentum_buffers, const py::buffer& params,
         On... on) {
        std::vector<uint64_t> of_weights = addresses(plan, "weights", weights);
        std::vector<uint64_t> of_buffers = addresses(plan, "momentum_buffers", momentum_buffers);
        std::vector<uint64_t> of_params = param_addresses(plan, params);
        const py::gil_scoped_release unlocked;
        plan.place(std::move(of_weights), std::move(of_buffers), std::move(of_params), on...);
      },
      py::arg("weights"), py::arg("momentum_buffers"), py::arg("params"), names...);
  bound.def(
      "measure",
      [](Plan& plan, const py::buffer& chosen, On... on) {
        const ChosenLayers layers(plan, chosen);
        const py::gil_scoped_release unlocked;
        plan.measure(layers.data(), on...);
      },
      py::arg("chosen"), names...);
  bound.def_property_readonly("steps", &Plan::steps_done);
}

}  // namespace sasgd
