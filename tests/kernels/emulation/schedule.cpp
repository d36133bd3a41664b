#include "schedule.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "grid.h"

namespace sasgd_emulation {

size_t Schedule::choose(size_t waiting) {
  if (seed_ > 1) return random_.below(waiting);
  return seed_ == 0 ? 0 : waiting - 1;
}

void Schedule::arrange(const std::vector<Block*>& blocks) {
  blocks_ = blocks;
  rearrange();
}

void Schedule::rearrange() {
  std::vector<Thread*> ready;
  while (Thread* thread = first_ready()) ready.push_back(thread);
  threads_.clear();
  for (const size_t b : permutation(blocks_.size())) {
    std::vector<Thread>& threads = blocks_[b]->threads;
    for (const size_t w : permutation((threads.size() + kWarp - 1) / kWarp)) {
      const size_t first = w * kWarp;
      for (const size_t lane : permutation(std::min<size_t>(kWarp, threads.size() - first))) {
        threads[first + lane].rank = threads_.size();
        threads_.push_back(&threads[first + lane]);
      }
    }
  }
  ready_.assign((threads_.size() + 63) / 64, 0);
  first_ = ready_.size();
  for (Thread* thread : ready) mark_ready(*thread);
  until_rearranged_ = 1 + random_.below(2 * threads_.size() + 1);
}

std::vector<size_t> Schedule::permutation(size_t count) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  if (seed_ == 1) std::reverse(order.begin(), order.end());
  if (seed_ > 1) {
    for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
  }
  return order;
}

void Schedule::mark_ready(Thread& thread) {
  const size_t word = thread.rank / 64;
  ready_[word] |= uint64_t{1} << thread.rank % 64;
  first_ = std::min(first_, word);
}

Thread* Schedule::next() {
  if (seed_ > 1 && --until_rearranged_ == 0) rearrange();
  return first_ready();
}

Thread* Schedule::first_ready() {
  while (first_ < ready_.size() && ready_[first_] == 0) ++first_;
  if (first_ == ready_.size()) return nullptr;
  const size_t bit = static_cast<size_t>(__builtin_ctzll(ready_[first_]));
  ready_[first_] &= ready_[first_] - 1;
  return threads_[first_ * 64 + bit];
}

}  // namespace sasgd_emulation
