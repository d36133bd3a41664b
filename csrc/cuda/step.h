// One step over all tensors on a CUDA device: what the host decides, and the launches. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../plan_base.h"
#include "tables.h"

namespace sasgd {

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

// How many thread blocks of a step, in mixed precision or not, in the relative scale or not, a device holds at once.
// Throws std::runtime_error where it cannot run a step.
int resident_thread_blocks(int device, bool mixed_precision = false, bool relative = false);

// Plans steps and launches them on a stream. A step never waits for the device; sending large tables may. Every call
// takes a cudaStream_t as an integer, leaves the plan's device the current one, and throws std::runtime_error, which
// says what was attempted, where the driver refuses.
class CudaPlan : public PlanBase {
 public:
  CudaPlan(int device, PlanSpec spec);

  int64_t table_bytes() const { return table_bytes_; }
  // Takes the device's memory into use and copies the fixed tables to `tables`: table_bytes() bytes, aligned to 16; to
  // 32, so that a chunk's entry lies in one sector of memory. The carried state, which the caller may read after a
  // synchronisation, must be zero, or what a plan like this one left.
  void attach(uint64_t tables, const CarriedState& state, uint64_t stream);

  // Copies the addresses of all weights, momentum buffers and parameters that masters are rounded to (null: none) to
  // the device; they hold until the next call.
  void place(std::vector<uint64_t> weights, std::vector<uint64_t> momentum_buffers, std::vector<uint64_t> params,
             uint64_t stream);

  // Whether what is put on the stream is recorded in a CUDA graph, and runs later or never.
  bool is_capturing(uint64_t stream) const;

  // Norm pass: takes the norms of the chosen layers from their weights, except of those whose norm is kept.
  void measure(const uint8_t* chosen_layers, uint64_t stream);

  // In the relative scale, takes the squared norms of the gradients whose norms the steps before have not left, in one
  // launch more. Arguments as in `step`.
  void measure_gradients(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups,
                         const uint64_t* lr_addresses, const DeviceNumbers& numbers, uint64_t stream);

  // One step: one launch for as many tensors and groups as fit its arguments. A null gradient leaves the tensor as it
  // is. lr_addresses holds, for each group, the address of a float on the device that is its learning rate, or null.
  void step(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups, const uint64_t* lr_addresses,
            const DeviceNumbers& numbers, uint64_t stream);

  // At most so many thread blocks are launched; 0, the default: as many as the device holds at once. Changes no result.
  int32_t max_thread_blocks = 0;

 private:
  struct PlannedLaunch {
    TensorRange tensors;
    std::vector<int32_t> groups;               // of its tensors
    std::vector<std::vector<int32_t>> levels;  // of the tree: the first node of each tensor; one more entry at the end
  };

  void plan_launches();
  void plan_chunks(TensorRange tensors);
  // The word of a tensor in a step.
  uint64_t gradient_word(int32_t tensor, const uint64_t* grads, const uint8_t* grad_dtypes) const;
  // Adds the nodes of some tensors of a launch.
  void plan_tree(PlannedLaunch& planned, TensorRange tensors);
  // Gives the tables their addresses, one after the other, and counts their bytes.
  void lay_out_tables(uint64_t begin);
  void send(const void* to, const void* from, size_t bytes, uint64_t stream);
  // word_of(t) is the word of tensor t; the launch is about the tensors from the first to the last that have one.
  template <cuda::Pass kPass, class Word>
  void launch(const PlannedLaunch& planned, const Word& word_of, const GroupValues* groups,
              const uint64_t* lr_addresses, const DeviceNumbers& numbers, uint64_t stream);

  int device_;
  bool mixed_precision_ = false;
  std::vector<PlannedLaunch> launches_;
  std::vector<cuda::ChunkEntry> chunks_;
  std::vector<cuda::TensorEntry> entries_;
  std::vector<LayerTraits> layer_traits_;
  std::vector<cuda::SumNode> nodes_;
  int64_t table_bytes_ = 0;
  cuda::Tables tables_{};
  int32_t resident_thread_blocks_ = 1;
  std::vector<uint64_t> words_;  // of the launch that is being made
  std::vector<uint64_t> lrs_;    // of its groups: addresses
};

}  // namespace sasgd
