// Calls of the CUDA runtime: its refusals as exceptions, and the current device.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "elements.cuh"  // which chooses between the runtime and its emulation

namespace sasgd {
namespace cuda {

// Whether an error is that of a kernel that ran before, anybody's. Every later call reports it again.
inline bool is_of_earlier_kernel(cudaError_t error) {
  switch (error) {
    case cudaErrorAssert:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

inline void check(cudaError_t error, const std::string& attempt) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that no later call reports it again
  throw std::runtime_error("CUDA: " + attempt + " failed: " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error) +
                           (is_of_earlier_kernel(error)
                                ? ". A kernel that was launched before failed, anybody's; with CUDA_LAUNCH_BLOCKING=1 "
                                  "in the environment the error comes from its own call"
                                : ""));
}

// Makes a device the current one. It is for the caller to have the one before again: cudaSetDevice would make a context
// where there is none, hundreds of megabytes for each process. torch.cuda.device does not.
inline void make_current(int device) {
  int current = 0;
  check(cudaGetDevice(&current), "asking for the current device");
  if (current != device) check(cudaSetDevice(device), "switching to device " + std::to_string(device));
}

inline std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

inline cudaStream_t as_stream(uint64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace cuda
}  // namespace sasgd
