// One step over all tensors on the CPU: schedule, carried norms, backward factors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../plan.h"
#include "kernels.h"

namespace sasgd {

// Carries the blocks' norms from step to step, so that a step is one pass over the tensors.
class CpuPlan {
 public:
  // Throws std::invalid_argument if tensors and blocks do not refer to each other.
  CpuPlan(std::vector<TensorInfo> tensors, std::vector<BlockInfo> blocks, PlanOptions options);

  // Norm pass: takes the norms of the chosen blocks from their weights. Addresses are those of all tensors; of tensors
  // that are not chosen they may be null.
  void measure(const uint64_t* weights, const uint8_t* chosen_blocks, int threads);

  // One step. Returns how many scaled blocks had been written since their norms were taken, which only this step saw:
  // their scale was that of the weights before. The caller has checked addresses and sizes.
  int64_t step(const TensorStep* steps, const GroupValues* groups, double loss_scale, int threads);

  // Has the next step use this norm of a block, whatever its weights are.
  void give_norm(size_t block, double norm);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<BlockInfo>& blocks() const { return blocks_; }
  int32_t group_count() const { return group_count_; }

  // ||W||^2_{2,mu} of each block.
  std::vector<double> row_norm_sq;
  // The sum of squares of each block's weights as the last step left them, or a norm pass took it.
  const std::vector<double>& sum_squares() const { return sum_squares_; }
  // How many steps of each block used the norm of weights that had been written unseen.
  std::vector<int64_t> stale_steps;
  // How many steps were carried out. Python may be interrupted before it sees that one returned.
  int64_t steps_done = 0;

 private:
  struct Chunk {
    int32_t tensor;
    int64_t offset;
    int64_t count;
  };
  struct Task {  // chunks that one thread does in one go
    int64_t first_chunk;
    int64_t end_chunk;
  };

  // Takes the sums of squares of the chosen blocks.
  void take_sums(const uint64_t* weights, const uint8_t* chosen_blocks, int threads);
  // Has a block's norm be that of its sums.
  void use_sums(size_t block);
  // The same before a step of the blocks whose carried sums cannot be those of their weights or are of no use: they
  // were taken in another floating-point mode, or are not finite although others may have put the weights right.
  void retake_sums(const TensorStep* steps, int threads);
  void make_coefficients_of(const TensorStep* steps, const GroupValues* groups, double loss_scale);
  // Calls body(tensor, offset, count, sums) for stretches of whole chunks that together make up all tensors.
  template <class Body>
  void for_each_run(int threads, const Body& body);

  // A tensor's sums: chunks in their order, lane by lane.
  ChunkSums sums_of(int32_t tensor) const;

  // Compares the sums of what a step read with the carried ones, and carries those of what it wrote.
  int64_t carry_sums(const TensorStep* steps);

  std::vector<TensorInfo> tensors_;
  std::vector<BlockInfo> blocks_;
  int32_t group_count_ = 0;
  PlanOptions options_;
  std::vector<Chunk> chunks_;
  std::vector<Task> tasks_;
  std::vector<int64_t> first_chunk_;  // of each tensor; one more entry at the end
  std::vector<double> sum_squares_;   // of each block's weights, carried
  std::vector<uint64_t> sum_modes_;   // the floating-point modes in which these were taken
  std::vector<uint8_t> given_;        // of each block: its norm is not from these sums
  std::vector<uint8_t> has_jumped_;   // of each block: its sum grew much in the last step
  std::vector<ChunkSums> chunk_sums_;
  std::vector<UpdateCoefficients> coefficients_;
};

// The instruction sets that this build has and this machine runs, the widest first.
std::vector<std::string> instruction_sets();

// Chooses one of them for the whole process; the default is the first. Results have the same bits on all.
// Throws std::invalid_argument for any other name.
void use_instruction_set(const std::string& name);

}  // namespace sasgd
