// The functions of the CUDA runtime that csrc/cuda calls, for devices that are this process's own memory.
//
// What waits for a device (cudaStreamSynchronize, cudaMemcpy) is left out on purpose: a step that calls it does not
// link.
#include <cuda_runtime_api.h>

#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "control.h"
#include "emulation.h"
#include "grid.h"

namespace sasgd_emulation {
namespace {

struct Capture {
  bool is_open = false;
  std::vector<std::function<void()>> launches;
};

struct Runtime {
  Settings settings;
  int device = 0;
  std::set<int> contexts;  // of the devices that have one
  cudaError_t last_error = cudaSuccess;
  std::map<std::string, cudaError_t> failures_to_come;
  std::map<cudaStream_t, Capture> captures;
  std::vector<StreamOperation> operations;
};

Runtime& runtime() {
  static auto& only = *new Runtime;
  return only;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) runtime().last_error = error;
  return error;
}

// What a call comes to: the failure that a test asked for, or else its own result.
cudaError_t finish(const char* function, const std::function<cudaError_t()>& call) {
  std::map<std::string, cudaError_t>& failures = runtime().failures_to_come;
  const auto failure = failures.find(function);
  if (failure == failures.end()) return remember(call());
  const cudaError_t error = failure->second;
  failures.erase(failure);
  return remember(error);
}

bool is_capturing(cudaStream_t stream) { return runtime().captures[stream].is_open; }

void note(const char* function, cudaStream_t stream, unsigned blocks, size_t bytes) {
  runtime().contexts.insert(runtime().device);
  runtime().operations.push_back({function, runtime().device, stream, blocks, bytes});
}

// A graph would read memory that is not pinned when it is replayed, and not when the copy was asked for.
cudaError_t copy(const char* function, cudaStream_t stream, size_t bytes, const std::function<void()>& write) {
  return finish(function, [&] {
    if (is_capturing(stream)) return cudaErrorStreamCaptureUnsupported;
    note(function, stream, 0, bytes);
    write();
    return cudaSuccess;
  });
}

}  // namespace

Settings& settings() { return runtime().settings; }

const std::vector<StreamOperation>& stream_operations() { return runtime().operations; }

bool has_context(int device) { return runtime().contexts.count(device) != 0; }

void fail_next(const std::string& function, cudaError_t error) { runtime().failures_to_come[function] = error; }

void begin_capture(cudaStream_t stream) { runtime().captures[stream] = {true, {}}; }

void end_capture(cudaStream_t stream) { runtime().captures[stream].is_open = false; }

void replay(cudaStream_t stream) {
  for (const std::function<void()>& launch : runtime().captures[stream].launches) launch();
}

void reset() { runtime() = {}; }

cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> body) {
  return finish("cudaLaunchKernelEx", [&] {
    const dim3 grid = config.gridDim, block = config.blockDim;
    if (grid.x == 0 || grid.y != 1 || grid.z != 1 || block.x == 0 || block.x > 1024 || block.y != 1 || block.z != 1) {
      return cudaErrorInvalidConfiguration;
    }
    if (config.dynamicSmemBytes != 0 || config.numAttrs != 0) return cudaErrorNotSupported;
    note("cudaLaunchKernelEx", config.stream, grid.x, 0);
    if (is_capturing(config.stream)) {
      const auto run = [=, body = std::move(body)] { run_grid(grid.x, block.x, body); };
      runtime().captures[config.stream].launches.push_back(run);
    } else {
      run_grid(grid.x, block.x, body);
    }
    return cudaSuccess;
  });
}

}  // namespace sasgd_emulation

using namespace sasgd_emulation;

cudaError_t cudaDriverGetVersion(int* version) {
  return finish("cudaDriverGetVersion", [&] {
    *version = settings().driver;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  return finish("cudaGetDeviceCount", [&] {
    if (settings().devices == 0) return cudaErrorNoDevice;
    *count = settings().devices;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return finish("cudaGetDevice", [&] {
    *device = runtime().device;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return finish("cudaSetDevice", [&] {
    if (device < 0 || device >= settings().devices) return cudaErrorInvalidDevice;
    runtime().device = device;
    runtime().contexts.insert(device);  // since CUDA 12
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return finish("cudaDeviceGetAttribute", [&] {
    if (device < 0 || device >= settings().devices) return cudaErrorInvalidDevice;
    if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorNotSupported;
    *value = settings().multiprocessors;
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return finish("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&] {
    runtime().contexts.insert(runtime().device);
    *blocks = settings().blocks_per_multiprocessor;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return finish("cudaFuncGetAttributes", [&] {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return finish("cudaStreamIsCapturing", [&] {
    runtime().contexts.insert(runtime().device);
    *status = is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy("cudaMemcpyAsync", stream, bytes, [=] { std::memcpy(to, from, bytes); });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return copy("cudaMemsetAsync", stream, bytes, [=] { std::memset(to, value, bytes); });
}

cudaError_t cudaGetLastError() { return std::exchange(runtime().last_error, cudaSuccess); }

// Of the errors that tests ask for and that arise here.
const char* cudaGetErrorName(cudaError_t error) {
#define SASGD_NAME(error) \
  case error:             \
    return #error;
  switch (error) {
    SASGD_NAME(cudaSuccess)
    SASGD_NAME(cudaErrorAssert)
    SASGD_NAME(cudaErrorIllegalAddress)
    SASGD_NAME(cudaErrorInsufficientDriver)
    SASGD_NAME(cudaErrorInvalidConfiguration)
    SASGD_NAME(cudaErrorInvalidDevice)
    SASGD_NAME(cudaErrorLaunchFailure)
    SASGD_NAME(cudaErrorLaunchOutOfResources)
    SASGD_NAME(cudaErrorMemoryAllocation)
    SASGD_NAME(cudaErrorNoDevice)
    SASGD_NAME(cudaErrorNoKernelImageForDevice)
    SASGD_NAME(cudaErrorNotSupported)
    SASGD_NAME(cudaErrorStreamCaptureUnsupported)
    default:
      return "an error that the emulation has no name for";
  }
#undef SASGD_NAME
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulated device";
}
