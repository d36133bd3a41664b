// The part of CUDA that csrc/cuda uses, on the CPU: what the compiler sees in the place of nvcc's own declarations.
//
// The sources of csrc/cuda are compiled by g++ with this header. Types and functions of the runtime come from CUDA's
// real headers; here are the names that exist in device code alone. All CUDA threads run in one thread of the operating
// system, each on a stack of its own (fiber.h), and give way to each other only where they wait for each other: at
// barriers and in shuffles. emulation.cpp decides who goes on, runtime_api.cpp is the runtime's host side, control.h is
// for tests.
//
// What it cannot show: the speed of a GPU, memory operations that hardware reorders, spinning on a flag (nobody takes
// the turn away from a thread that spins).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

// CUDA's headers let __global__, __device__ and the like vanish where nvcc does not compile, but not this one.
#define __launch_bounds__(...)

// A shared array comes from the heap, once for each block, so that the address sanitizer sees a step beyond its ends.
// It is filled with bytes of 0xff: a float that nobody wrote is NaN.
#define SASGD_SHARED(Type, name, count)        \
  static const char declaration_of_##name = 0; \
  Type* const name = sasgd_emulation::shared_array<Type>(&declaration_of_##name, count)

// An assumption that does not hold is undefined behaviour on the device. Here it is an error.
#define __builtin_assume(condition) sasgd_emulation::check_assumption(condition, #condition)

// Of the thread that is running.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace sasgd_emulation {

// Where in the source something is called. As a default argument it is the caller's place.
struct Place {
  const char* file;
  int line;

  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Place& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

constexpr int kWarp = 32;

// Waits for all threads of the block.
void synchronize_block(Place place);
// Waits for the lanes of the mask, and orders their memory accesses.
void synchronize_warp(uint32_t mask, Place place);
// Waits for the lanes of the mask and returns the value that lane `source` came with.
uint64_t exchange(const char* operation, uint32_t mask, uint64_t value, int source, Place place);
void fence();
// Whether it is neither in a shared array nor on a stack.
bool is_global(const void* address);
void check_assumption(bool holds, const char* condition, Place place = Place::here());
// The block's memory for the declaration at that address.
void* shared_memory(const void* declaration, size_t bytes);

template <class T>
T* shared_array(const void* declaration, size_t count) {
  static_assert(alignof(T) <= alignof(std::max_align_t), "memory from the heap is aligned to no more");
  return static_cast<T*>(shared_memory(declaration, count * sizeof(T)));
}

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

template <class T>
T shuffle(const char* operation, uint32_t mask, T value, int source, Place place) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a shuffle moves 32 or 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(operation, mask, bits, source, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Runs the kernel's body for every thread of the grid, or keeps it for a replay if the stream is being captured.
cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> body);

}  // namespace sasgd_emulation

inline void __syncthreads(sasgd_emulation::Place place = sasgd_emulation::Place::here()) {
  sasgd_emulation::synchronize_block(place);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, sasgd_emulation::Place place = sasgd_emulation::Place::here()) {
  sasgd_emulation::synchronize_warp(mask, place);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, sasgd_emulation::Place place = sasgd_emulation::Place::here()) {
  return sasgd_emulation::shuffle("__shfl_sync", mask, value, source % sasgd_emulation::kWarp, place);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta,
                   sasgd_emulation::Place place = sasgd_emulation::Place::here()) {
  const int lane = sasgd_emulation::lane(), source = lane + static_cast<int>(delta);
  return sasgd_emulation::shuffle("__shfl_down_sync", mask, value, source < sasgd_emulation::kWarp ? source : lane,
                                  place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask,
                  sasgd_emulation::Place place = sasgd_emulation::Place::here()) {
  return sasgd_emulation::shuffle("__shfl_xor_sync", mask, value, sasgd_emulation::lane() ^ lane_mask, place);
}

// Loads and stores of what is to leave the cache first. There is none here.
template <class T>
T __ldcs(const T* place) {
  return *place;
}

template <class T>
void __stcs(T* place, T value) {
  *place = value;
}

// Reads the byte, for the sanitizer to see the address. The thread sanitizer would take it for an access.
inline void prefetch_to_l2(const void* address) {
#if !defined(SASGD_THREAD_SANITIZER)
  static_cast<void>(*static_cast<const volatile char*>(address));
#endif
}

inline void __threadfence() { sasgd_emulation::fence(); }

inline unsigned __isGlobal(const void* address) { return sasgd_emulation::is_global(address); }

// The launch is over when this returns. Throws std::runtime_error if threads wait for what cannot come.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // As the driver does: the arguments are copied once, and all threads, and all replays of a graph, get that copy.
  const auto parameters = std::make_shared<const std::tuple<Parameters...>>(std::forward<Arguments>(arguments)...);
  return sasgd_emulation::launch(*config, [=] { std::apply(kernel, *parameters); });
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads,
                                                       shared_bytes);
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel* kernel) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
