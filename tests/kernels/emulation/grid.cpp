// The loop that runs the threads of a launch, one at a time, until all have exited.
#include "grid.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "control.h"
#include "sanitizers.h"
#include "schedule.h"

namespace sasgd_emulation {

Thread* current;

namespace {

// Of the launch that runs.
Schedule* schedule;
const std::function<void()>* body;

char begin_order,
    end_order;  // for the thread sanitizer: what was released when a launch began, and by threads that ended

// What runs on a fiber: one CUDA thread after the other.
void run_threads() {
  for (;;) {
    acquire(&begin_order);
    (*body)();
    release(&end_order);
    pause_as(State::kExited);
  }
}

// Fibers without a thread. They are kept for the next launch, and never destroyed: a program may end at any time.
std::vector<std::unique_ptr<Fiber>>& idle_fibers() {
  static auto& fibers = *new std::vector<std::unique_ptr<Fiber>>;
  return fibers;
}

std::unique_ptr<Block> make_block(unsigned index, unsigned threads) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->warps.resize((threads + kWarp - 1) / kWarp);
  block->threads.resize(threads);
  std::vector<std::unique_ptr<Fiber>>& idle = idle_fibers();
  for (unsigned t = 0; t < threads; ++t) {
    if (idle.empty()) idle.push_back(std::make_unique<Fiber>(run_threads));
    block->threads[t].block = block.get();
    block->threads[t].index = t;
    block->threads[t].fiber = std::move(idle.back());
    idle.pop_back();
  }
  return block;
}

void give_back_fibers(Block& block) {
  for (Thread& thread : block.threads) {
    if (thread.fiber) idle_fibers().push_back(std::move(thread.fiber));
  }
}

void make_array(const Thread& thread) {
  Block& block = *thread.block;
  block.arrays.push_back({thread.declaration, thread.bytes, std::unique_ptr<char[]>(new char[thread.bytes])});
  std::memset(block.arrays.back().memory.get(), 0xff, thread.bytes);
  release(&block.arrays_order);
}

std::string name(const Place& place) { return std::string(place.file) + ":" + std::to_string(place.line); }

std::string describe(const Thread& thread) {
  switch (thread.state) {
    case State::kWaitsForBlock:
    case State::kWaitsForWarp:
    case State::kFailed:
      return std::string("in ") + thread.operation + " at " + name(thread.place);
    case State::kExited:
      return "exited";
    default:
      return "can go on";
  }
}

// A line for each run of neighbours that do the same.
std::string describe(const Block& block) {
  std::string text;
  const std::vector<Thread>& threads = block.threads;
  for (size_t first = 0, end = 0; first < threads.size(); first = end) {
    const std::string doing = describe(threads[first]);
    while (end < threads.size() && describe(threads[end]) == doing) ++end;
    text += "\n  block " + std::to_string(block.index) + ", threads " + std::to_string(first) + " to " +
            std::to_string(end - 1) + ": " + doing;
  }
  return text;
}

[[noreturn]] void throw_failure(const Thread& thread) {
  throw std::runtime_error("emulated CUDA: block " + std::to_string(thread.block->index) + ", thread " +
                           std::to_string(thread.index) + ", " + thread.operation + " at " + name(thread.place) + ": " +
                           thread.failure + describe(*thread.block));
}

[[noreturn]] void throw_stuck(const std::vector<Block*>& blocks) {
  std::string text = "emulated CUDA: no thread can go on";
  for (const Block* block : blocks) text += describe(*block);
  throw std::runtime_error(text);
}

// Goes on with the thread until it waits or exits.
void run(Thread& thread) {
  current = &thread;
  threadIdx = {thread.index, 0, 0};
  blockIdx = {thread.block->index, 0, 0};
  thread.fiber->resume();
  while (thread.state == State::kWantsMemory) {
    make_array(thread);
    thread.state = State::kRuns;
    thread.fiber->resume();
  }
  if (thread.state == State::kFailed) throw_failure(thread);
}

}  // namespace

void pause_as(State state) {
  current->state = state;
  current->fiber->pause();
}

void fail(const char* failure) {
  current->failure = failure;
  pause_as(State::kFailed);
}

void make_ready(Thread& thread) {
  thread.state = State::kRuns;
  schedule->mark_ready(thread);
}

void run_grid(unsigned blocks, unsigned threads, const std::function<void()>& body_of_thread) {
  Schedule its_schedule(settings().seed);
  schedule = &its_schedule;
  body = &body_of_thread;
  gridDim = dim3(blocks);
  blockDim = dim3(threads);
  release(&begin_order);

  std::vector<unsigned> waiting(blocks);
  std::iota(waiting.begin(), waiting.end(), 0u);
  std::vector<std::unique_ptr<Block>> begun;
  std::vector<Block*> resident;  // by their index
  const auto begin_block = [&] {
    const auto chosen = waiting.begin() + static_cast<std::ptrdiff_t>(schedule->choose(waiting.size()));
    begun.push_back(make_block(*chosen, threads));
    waiting.erase(chosen);
    Block* block = begun.back().get();
    const auto is_before = [](const Block* a, const Block* b) { return a->index < b->index; };
    resident.insert(std::upper_bound(resident.begin(), resident.end(), block, is_before), block);
    schedule->arrange(resident);
    for (Thread& thread : block->threads) schedule->mark_ready(thread);
  };
  const auto end_block = [&](Block* block) {
    resident.erase(std::find(resident.begin(), resident.end(), block));
    schedule->arrange(resident);
    // The thread sanitizer would see two blocks write to one stack, with nothing to order them.
    if (!kChecksThreads) give_back_fibers(*block);
  };

  const size_t bound = settings().resident_blocks ? settings().resident_blocks : blocks;
  while (!resident.empty() || !waiting.empty()) {
    while (!waiting.empty() && resident.size() < bound) begin_block();
    Thread* thread = schedule->next();
    if (!thread) throw_stuck(resident);
    run(*thread);
    if (thread->state == State::kExited && ++thread->block->exited == threads) end_block(thread->block);
  }
  acquire(&end_order);
  for (const std::unique_ptr<Block>& block : begun) give_back_fibers(*block);
}

}  // namespace sasgd_emulation
