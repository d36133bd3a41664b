// What a CUDA thread calls. It runs on the thread's fiber and does nothing there that allocates or throws, which the
// thread sanitizer would take for the CUDA thread's doing: it notes what it waits for and pauses, and the loop in
// grid.cpp does the rest.
#include "emulation.h"

#include <algorithm>

#include "grid.h"
#include "sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace sasgd_emulation {
namespace {

bool has(uint32_t mask, int lane) { return mask >> lane & 1; }

bool wait_for_the_same(const Thread& a, const Thread& b) {
  return a.operation == b.operation && a.mask == b.mask && a.place == b.place;
}

// All lanes of the mask are there: each gets the value of its source.
void hand_out(Thread* lanes, uint32_t mask) {
  uint64_t values[kWarp];
  for (int i = 0; i < kWarp; ++i) {
    if (has(mask, i)) values[i] = lanes[i].value;
  }
  for (int i = 0; i < kWarp; ++i) {
    if (!has(mask, i)) continue;
    lanes[i].value = values[lanes[i].source];
    make_ready(lanes[i]);
  }
}

// Waits for the lanes of the mask, all of which come with a value and take another's.
void meet_warp(const char* operation, uint32_t mask, uint64_t value, int source, Place place) {
  Thread& own = *current;
  const int lane = static_cast<int>(own.index) % kWarp;
  Thread* const lanes = &own - lane;
  Warp& warp = own.block->warps[own.index / kWarp];
  own.operation = operation;
  own.place = place;
  own.mask = mask;
  own.value = value;
  own.source = source;
  if (!has(mask, lane)) fail("the thread's lane is not in its own mask");
  if (source < 0 || source >= kWarp || !has(mask, source)) fail("the value of a lane that is not in the mask");

  warp.waiting |= uint32_t{1} << lane;
  own.state = State::kWaitsForWarp;
  if ((warp.waiting & mask) == mask) {
    for (int i = 0; i < kWarp; ++i) {
      if (has(mask, i) && !wait_for_the_same(own, lanes[i])) fail("lanes of the mask wait at different places");
    }
    warp.waiting &= ~mask;
    hand_out(lanes, mask);
  }
  own.fiber->pause();
}

const SharedArray* find_array(const void* declaration) {
  for (const SharedArray& array : current->block->arrays) {
    if (array.declaration == declaration) return &array;
  }
  return nullptr;
}

}  // namespace

void synchronize_block(Place place) {
  Thread& own = *current;
  Block& block = *own.block;
  char* const order = &block.barrier_orders[block.barriers % 2];
  release(order);
  own.operation = "__syncthreads";
  own.place = place;
  own.state = State::kWaitsForBlock;
  if (++block.waiting == block.threads.size()) {
    for (const Thread& other : block.threads) {
      if (!(other.place == place)) fail("threads of one block wait at different places");
    }
    block.waiting = 0;
    ++block.barriers;
    for (Thread& thread : block.threads) make_ready(thread);
  }
  own.fiber->pause();
  acquire(order);
}

// For the thread sanitizer, a lane that has already come to a later __syncwarp counts as one of this: it may miss a
// race.
void synchronize_warp(uint32_t mask, Place place) {
  char* const order = &current->block->warps[current->index / kWarp].order;
  release(order);
  meet_warp("__syncwarp", mask, 0, lane(), place);
  acquire(order);
}

// Orders no memory accesses, as on the device.
uint64_t exchange(const char* operation, uint32_t mask, uint64_t value, int source, Place place) {
  meet_warp(operation, mask, value, source, place);
  return current->value;
}

// For the thread sanitizer, what comes before a fence comes before what follows any later fence. CUDA asks for an
// atomic operation between the two besides: it may miss a race.
void fence() {
  static char order;
  acquire(&order);
  release(&order);
}

bool is_global(const void* address) {
  const auto holds = [&](const SharedArray& array) {
    return address >= array.memory.get() && address < array.memory.get() + array.bytes;
  };
  const std::vector<SharedArray>& arrays = current->block->arrays;
  return !current->fiber->has_on_stack(address) && std::none_of(arrays.begin(), arrays.end(), holds);
}

void check_assumption(bool holds, const char* condition, Place place) {
  if (holds) return;
  current->operation = condition;
  current->place = place;
  fail("an assumption that does not hold");
}

void* shared_memory(const void* declaration, size_t bytes) {
  const SharedArray* array = find_array(declaration);
  if (!array) {
    current->declaration = declaration;
    current->bytes = bytes;
    pause_as(State::kWantsMemory);
    array = find_array(declaration);
  }
  acquire(&current->block->arrays_order);
  return array->memory.get();
}

}  // namespace sasgd_emulation
