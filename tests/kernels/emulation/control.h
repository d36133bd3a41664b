// What tests set in the emulation, and what they read from it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sasgd_emulation {

struct Settings {
  // Who goes first where several threads can go on: 0: the first of the first block; 1: the last of the last; any
  // other: at random, in another order every now and then.
  uint64_t seed = 0;
  // So many blocks run at a time, and others begin when one has finished; 0: all.
  unsigned resident_blocks = 0;
  int driver = CUDART_VERSION;  // the newest CUDA that it knows; 0: there is none
  int devices = 2;
  int multiprocessors = 2;  // of each device
  int blocks_per_multiprocessor = 2;
};

// May be changed between launches.
Settings& settings();

// What was put on a stream, by the function that did it; of a launch, how many blocks.
struct StreamOperation {
  std::string function;
  int device;
  cudaStream_t stream;
  unsigned blocks;
  size_t bytes;
};

const std::vector<StreamOperation>& stream_operations();

// Whether anything was done on a device, or it was made the current one, which makes a context there.
bool has_context(int device);

// The next call of the runtime's function of that name fails; of cudaLaunchKernelEx also.
void fail_next(const std::string& function, cudaError_t error);

// Between the two, launches on the stream are kept and not run, as while a CUDA graph is captured. Copies are refused.
void begin_capture(cudaStream_t stream);
void end_capture(cudaStream_t stream);
// Runs what the last capture on the stream has kept. Does not appear among the stream operations.
void replay(cudaStream_t stream);

// Back to how it was in the beginning: settings, current device, failures to come, captures, operations.
void reset();

}  // namespace sasgd_emulation
