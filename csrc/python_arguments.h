// What both plans take from Python: views of buffers, and tensors, blocks and hyperparameters after their checks.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "plan.h"

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

// (numel, group, dtype code) of each tensor and (tensor, scaled, rows, columns, backward factor) of each block.
using TensorTuples = std::vector<std::tuple<int64_t, int, int>>;
using BlockTuples = std::vector<std::tuple<int, bool, double, double, double>>;
// (copy_dtype code, small_momentum, stochastic, stream) of each tensor, or nothing where all are ordinary.
using StorageTuples = std::vector<std::tuple<int, bool, bool, uint64_t>>;

struct Layout {
  std::vector<TensorInfo> tensors;
  std::vector<BlockInfo> blocks;
};

// Throws std::invalid_argument where a tensor cannot be stored so.
inline Storage checked_storage(const TensorInfo& tensor, const StorageTuples::value_type& tuple) {
  const auto& [copy, small_momentum, stochastic, stream] = tuple;
  const Storage storage{checked_dtype("storage", copy), small_momentum, stochastic, stream};
  const bool wants_float32 = has_copy(storage) || small_momentum;
  if (wants_float32 && tensor.dtype != DType::kFloat32) {
    throw std::invalid_argument("storage: got a copy or a small momentum buffer of 16-bit weights, want float32");
  }
  if (stochastic && tensor.dtype != DType::kBFloat16 && !small_momentum) {
    throw std::invalid_argument("storage: got stochastic rounding of a tensor that has nothing in bfloat16");
  }
  return storage;
}

inline Layout checked_layout(const TensorTuples& tensors, const BlockTuples& blocks, const StorageTuples& storage) {
  if (!storage.empty() && storage.size() != tensors.size()) {
    throw std::invalid_argument("storage: got " + std::to_string(storage.size()) + " entries, want none or " +
                                std::to_string(tensors.size()));
  }
  Layout layout;
  for (const auto& [numel, group, dtype] : tensors) {
    if (numel < 0) throw std::invalid_argument("tensors: got a size of " + std::to_string(numel) + ", want 0 or more");
    if (group < 0 || group == std::numeric_limits<int>::max()) {
      throw std::invalid_argument("tensors: got group " + std::to_string(group) + ", want a small number from 0 on");
    }
    TensorInfo tensor{numel, group, -1, checked_dtype("tensors", dtype), {}};
    if (!storage.empty()) tensor.storage = checked_storage(tensor, storage[layout.tensors.size()]);
    layout.tensors.push_back(tensor);
  }
  for (const auto& [tensor, scaled, rows, columns, backward_factor] : blocks) {
    if (tensor < 0 || static_cast<size_t>(tensor) >= layout.tensors.size()) {
      throw std::invalid_argument("blocks: got tensor " + std::to_string(tensor) + ", want less than " +
                                  std::to_string(layout.tensors.size()));
    }
    layout.tensors[tensor].block = static_cast<int32_t>(layout.blocks.size());
    layout.blocks.push_back({tensor, scaled, rows, columns, backward_factor});
    if ((backward_factor == 0) != (layout.blocks[0].backward_factor == 0)) {
      throw std::invalid_argument("blocks: got a backward factor for some and none (0) for others, want all or none");
    }
  }
  return layout;
}

// The values of the groups that a plan knows of; groups without tensors may follow them.
inline std::vector<GroupValues> group_values(const py::buffer& values, int32_t group_count) {
  const size_t count = static_cast<size_t>(group_count);
  const Array<double> numbers("values", values, count * kValuesPerGroup, Length::kAtLeast);
  std::vector<GroupValues> groups;
  for (const double* v = numbers.data(); groups.size() < count; v += kValuesPerGroup) {
    groups.push_back({v[0], v[1], v[2], v[3], v[4] != 0, v[5] != 0});
  }
  return groups;
}

inline void check_copy(const TensorInfo& tensor, size_t t, uint64_t copy) {
  if (tensor.numel && has_copy(tensor.storage) != (copy != 0)) {
    throw std::invalid_argument("copies: tensor " + std::to_string(t) +
                                " has an address and no copy, or a copy and no address");
  }
}

inline DType checked_grad_dtype(const TensorInfo& tensor, size_t t, int code) {
  const DType dtype = checked_dtype("grad_dtypes", code);
  if (dtype != tensor.dtype && dtype != tensor.storage.copy_dtype && dtype != DType::kFloat32) {
    throw std::invalid_argument("grad_dtypes: tensor " + std::to_string(t) +
                                " has a 16-bit gradient of another dtype, want its own or float32");
  }
  return dtype;
}

}  // namespace sasgd
