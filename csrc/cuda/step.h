// One step over all tensors on a CUDA device: what the host decides, and the launches. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../plan.h"
#include "tables.h"

namespace sasgd {

// What lives on the device from step to step. The memory is the caller's, who may read it after a synchronisation.
struct DeviceState {
  uint64_t tables;          // table_bytes() bytes, aligned to 16: the plan's own
  uint64_t row_norm_sq;     // double for each block: ||W||^2_{2,mu}
  uint64_t stale_steps;     // int64 for each block: how many steps used the norm of weights that were written unseen
  uint64_t flags;           // byte for each tensor: kStarted, kNormKept
  uint64_t rounding_steps;  // int64 for each tensor: how many steps of it have been rounded stochastically
};

constexpr uint8_t kStarted = 1;   // the momentum buffer has taken its first gradient
constexpr uint8_t kNormKept = 2;  // frozen norms: the scaled block's norm stays as it is

// Numbers that a step reads on the device, or null.
struct DeviceNumbers {
  uint64_t grad_scale;  // float: what the gradients were multiplied by
  uint64_t found_inf;   // float: if not zero, the step leaves everything as it is
};

// What the kernels were compiled with and for: CUDA's version times 1000, and compute capabilities times 100.
int cuda_version();
std::vector<int> cuda_architectures();

// How many devices the driver sees. Throws std::runtime_error, which says why, where it cannot be asked.
int cuda_devices();

// How many thread blocks of a step a device holds at once; mixed: of a plan with extraordinary storage. Throws
// std::runtime_error where it cannot run a step.
int resident_blocks(int device, bool mixed = false);

// Plans steps and launches them on a stream. A step never waits for the device; sending large tables may. Every call
// takes a cudaStream_t as an integer, leaves the plan's device the current one, and throws std::runtime_error, which
// says what was attempted, where the driver refuses.
class CudaPlan {
 public:
  // Throws std::invalid_argument if tensors and blocks do not refer to each other.
  CudaPlan(int device, std::vector<TensorInfo> tensors, std::vector<BlockInfo> blocks, PlanOptions options);

  int64_t table_bytes() const { return table_bytes_; }
  // Where the tables hold a double for each block: the sum of squares of its weights as the last step left them.
  int64_t sum_squares_offset() const { return static_cast<int64_t>(offsets_.sum_squares); }
  // Takes the device's memory into use and copies the fixed tables there. The carried state must be zero, or set.
  void attach(const DeviceState& state, uint64_t stream);

  // Copies the addresses of all weights, momentum buffers and copies (null: none) to the device; holds until the next
  // call.
  void place(const uint64_t* weights, const uint64_t* momentum_buffers, const uint64_t* copies, uint64_t stream);

  // Whether what is put on the stream is recorded in a CUDA graph, and runs later or never.
  bool is_capturing(uint64_t stream) const;

  // Norm pass: takes the norms of the chosen blocks from their weights, except of those whose norm is kept.
  void measure(const uint8_t* chosen_blocks, uint64_t stream);

  // One step: one launch for as many tensors and groups as fit its arguments. A null gradient leaves the tensor as it
  // is. lr_addresses holds, for each group, the address of a float on the device that is its learning rate, or null.
  void step(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups, const uint64_t* lr_addresses,
            const DeviceNumbers& numbers, uint64_t stream);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<BlockInfo>& blocks() const { return blocks_; }
  int32_t group_count() const { return group_count_; }

  // At most so many thread blocks are launched; 0, the default: as many as the device holds at once. Changes no result.
  int32_t max_blocks = 0;
  // As placed last.
  std::vector<uint64_t> weight_addresses;
  // How many steps were launched. Python may be interrupted before it sees that one returned.
  int64_t steps_done = 0;

 private:
  struct PlannedLaunch {
    cuda::Launch launch;
    std::vector<int32_t> groups;  // of its tensors
  };
  struct Offsets {  // of the tables in the device's memory; those up to the addresses are fixed
    size_t entries, tensor_of_chunk, blocks, nodes, addresses, mixed, sums, sum_squares, finished_blocks;
  };

  void plan_launches();
  void plan_tree(cuda::Launch& launch);
  void lay_out_tables();
  void send(const void* to, const void* from, size_t bytes, uint64_t stream);
  // word_of(t) is the word of tensor t; nothing is launched where all are 0.
  template <bool kUpdate, class Word>
  void launch(const PlannedLaunch& planned, const Word& word_of, const GroupValues* groups,
              const uint64_t* lr_addresses, const DeviceNumbers& numbers, uint64_t stream);

  int device_;
  std::vector<TensorInfo> tensors_;
  std::vector<BlockInfo> blocks_;
  PlanOptions options_;
  int32_t group_count_ = 0;
  bool is_mixed_ = false;
  std::vector<PlannedLaunch> launches_;
  std::vector<cuda::TensorEntry> entries_;
  std::vector<int32_t> tensor_of_chunk_;
  std::vector<cuda::BlockEntry> block_entries_;
  std::vector<cuda::SumNode> nodes_;
  Offsets offsets_{};
  int64_t table_bytes_ = 0;
  cuda::Tables tables_{};
  int32_t resident_blocks_ = 1;
  std::vector<uint64_t> words_;  // of the launch that is being made
};

}  // namespace sasgd
