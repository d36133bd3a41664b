// Calls of the CUDA runtime: its refusals as exceptions, and the current device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "elements.cuh"  // which chooses between the runtime and its emulation

namespace sasgd {
namespace cuda {

inline void check(cudaError_t error, const std::string& attempt) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that no later call reports it again
  throw std::runtime_error("CUDA: " + attempt + " failed: " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

// Makes a device the current one, and the one before again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ == device) before_ = -1;
    if (before_ >= 0) check(cudaSetDevice(device), "switching to device " + std::to_string(device));
  }
  ~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

inline std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

inline cudaStream_t as_stream(uint64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace cuda
}  // namespace sasgd
