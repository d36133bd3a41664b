// The CUDA part of the extension as a Python module of its own, with its kernels on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "control.h"
#include "cuda/bindings.h"

namespace py = pybind11;
using sasgd_emulation::settings;
using sasgd_emulation::Settings;

PYBIND11_MODULE(emulated_cuda, m) {
  m.doc() = "csrc/cuda under the emulation; tests/emulated_cuda.py is its only user.";
  sasgd::bind_cuda(m);
  py::class_<Settings>(m, "Settings")
      .def_readwrite("seed", &Settings::seed)
      .def_readwrite("resident_blocks", &Settings::resident_blocks)
      .def_readwrite("driver", &Settings::driver)
      .def_readwrite("devices", &Settings::devices)
      .def_readwrite("multiprocessors", &Settings::multiprocessors);
  m.def("settings", &settings, py::return_value_policy::reference);
  m.def("reset", &sasgd_emulation::reset);
  m.def("fail_next", [](const std::string& function, int error) {
    sasgd_emulation::fail_next(function, static_cast<cudaError_t>(error));
  });
  m.def("begin_capture",
        [](uint64_t stream) { sasgd_emulation::begin_capture(reinterpret_cast<cudaStream_t>(stream)); });
  m.def("end_capture", [](uint64_t stream) { sasgd_emulation::end_capture(reinterpret_cast<cudaStream_t>(stream)); });
  m.def("replay", [](uint64_t stream) { sasgd_emulation::replay(reinterpret_cast<cudaStream_t>(stream)); });
  m.def("has_context", &sasgd_emulation::has_context);
  m.def("current_device", [] {
    int device = 0;
    cudaGetDevice(&device);
    return device;
  });
  m.def("set_device", [](int device) { cudaSetDevice(device); });
  m.def("stream_operations", [] {  // (function, device, stream, blocks, bytes)
    std::vector<std::tuple<std::string, int, uint64_t, unsigned, size_t>> operations;
    for (const auto& done : sasgd_emulation::stream_operations()) {
      operations.emplace_back(done.function, done.device, reinterpret_cast<uint64_t>(done.stream), done.blocks,
                              done.bytes);
    }
    return operations;
  });
}
