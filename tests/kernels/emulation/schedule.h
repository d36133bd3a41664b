// Who runs next: the threads in the order of their precedence, and which of them are ready.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sasgd_emulation {

struct Block;
struct Thread;

// The same numbers on every machine: splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // In [0, bound).
  size_t below(size_t bound) {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<size_t>((z ^ (z >> 31)) % bound);
  }

 private:
  uint64_t state_;
};

// The first thread in the order that is ready always goes first. So some threads get as far ahead of others as barriers
// and shuffles allow, which is what brings a missing barrier to light; taking turns would not. The order is one of
// blocks, of the warps in each and of the lanes in each: ascending with seed 0, descending with seed 1, else at random,
// and then drawn anew at random moments.
class Schedule {
 public:
  explicit Schedule(uint64_t seed) : seed_(seed), random_(seed) {}

  // Which of the blocks that have not begun is the next.
  size_t choose(size_t waiting);
  // From here on, threads are those of these blocks. All that are marked as ready must be among them.
  void arrange(const std::vector<Block*>& blocks);
  void mark_ready(Thread& thread);
  // The thread to go on, which is no longer marked as ready; null if none is.
  Thread* next();

 private:
  void rearrange();
  Thread* first_ready();
  // The numbers below count, in the order that the seed asks for.
  std::vector<size_t> permutation(size_t count);

  uint64_t seed_;
  Random random_;
  std::vector<Block*> blocks_;
  std::vector<Thread*> threads_;
  std::vector<uint64_t> ready_;  // a bit for each of threads_
  size_t first_ = 0;             // words of ready_ before this one are zero
  size_t until_rearranged_ = 0;
};

}  // namespace sasgd_emulation
