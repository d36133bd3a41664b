// The threads of a launch and what each of them is doing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "emulation.h"
#include "fiber.h"

namespace sasgd_emulation {

enum class State : uint8_t {
  kRuns,           // or can run
  kWaitsForBlock,  // in __syncthreads
  kWaitsForWarp,   // in a shuffle or in __syncwarp
  kWantsMemory,    // asks for a shared array
  kFailed,         // did what a CUDA thread must not do
  kExited,
};

struct Block;

struct Thread {
  Block* block;
  unsigned index;
  std::unique_ptr<Fiber> fiber;
  size_t rank = 0;  // in the schedule
  State state = State::kRuns;
  // The operation in which it waits or failed, and its part in a shuffle.
  const char* operation = nullptr;
  Place place{};
  uint32_t mask = 0;
  int source = 0;
  uint64_t value = 0;
  // The shared array it asks for.
  const void* declaration = nullptr;
  size_t bytes = 0;
  const char* failure = nullptr;
};

struct Warp {
  uint32_t waiting = 0;  // lanes
  char order = 0;        // for the thread sanitizer: what was released at a __syncwarp
};

struct SharedArray {
  const void* declaration;
  size_t bytes;
  std::unique_ptr<char[]> memory;
};

struct Block {
  unsigned index;
  std::vector<SharedArray> arrays;  // outlive the threads
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned waiting = 0;  // in __syncthreads
  unsigned exited = 0;
  unsigned barriers = 0;  // passed
  // For the thread sanitizer: what was released when memory was given out, and before a barrier. Barriers take turns,
  // so that who is already at the next one is not taken for one who was at this.
  char arrays_order = 0;
  char barrier_orders[2] = {};
};

// Runs the body once for every thread.
void run_grid(unsigned blocks, unsigned threads, const std::function<void()>& body);

// What the functions that a CUDA thread calls need of the loop that runs the threads.

// The thread that runs.
extern Thread* current;
// Lets others run until this one is made ready.
void pause_as(State state);
// Ends the launch with an error. Nothing after it runs.
void fail(const char* failure);
void make_ready(Thread& thread);

}  // namespace sasgd_emulation
