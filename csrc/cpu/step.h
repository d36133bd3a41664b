// One step over all tensors on the CPU: schedule and carried norms.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../plan_base.h"
#include "kernels.h"

namespace sasgd {

// Carries the layers' norms from step to step, so that a step is one pass over the tensors.
class CpuPlan : public PlanBase {
 public:
  // `threads` gives the number of threads; it is asked in each norm pass and step.
  CpuPlan(PlanSpec spec, std::function<int()> threads);

  // Takes memory into use. What it holds must be zero, or what a plan like this one left there. What else is carried,
  // sum_modes_ and has_jumped_, begins anew with each plan: its first step takes the sums anew.
  void attach(const CarriedState& state) { state_ = state; }

  // Takes the addresses of all weights, momentum buffers and parameters that masters are rounded to (null: none); they
  // hold until the next call.
  using PlanBase::place;

  // Norm pass: takes the norms of the chosen layers from their weights, except of those whose norm is kept.
  void measure(const uint8_t* chosen_layers);

  // In the relative scale, takes the squared norms of the gradients whose norms the steps before have not left; a step
  // does so by itself. Arguments as in `step`.
  void measure_gradients(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups,
                         double grad_scale);

  // One step; a null gradient leaves the tensor as it is. Returns how many scaled layers had been written since their
  // norms were taken, which only this step saw: their scale was that of the weights before.
  int64_t step(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups, double grad_scale);

 private:
  // Throws std::invalid_argument where that is not 1 or more.
  int thread_count() const;
  // Takes the sums of squares of some tensors, which are in order.
  void take_sums(const std::vector<int32_t>& chosen, int threads);
  // The norm that follows from a layer's sums.
  double norm_of_sums(size_t layer) const { return state_.sum_squares[layer] / layers_[layer].rows; }
  // Before a step, takes the norms anew whose carried sums cannot be those of the weights or are of no use: they were
  // taken in another floating-point mode, or are not finite or have jumped although others may have put the weights
  // right. A norm that is not that of the carried sums was given by the host, and stays.
  void retake_sums(TensorRange range, const uint64_t* grads, int threads);
  void make_coefficients_of(TensorRange range, const GroupValues* groups, double grad_scale);
  // Measures the gradients of the tensors in a range whose norms are not known.
  void take_gradient_sums(TensorRange range, const uint64_t* grads, const uint8_t* grad_dtypes,
                          const GroupValues* groups, double grad_scale, int threads);
  bool takes_gradient(int32_t tensor) const {
    return options_.relative && tensors_[tensor].layer >= 0 && layers_[tensors_[tensor].layer].scaled;
  }
  // What a kernel is told of a stretch of a tensor whose coefficients are made.
  RunStep run_of(int32_t tensor, int64_t offset, int64_t count, ChunkSums* sums, uint64_t grad,
                 uint8_t grad_dtype) const;
  // Calls body(tensor, offset, count, sums) for stretches of whole chunks that together make up the tensors of a range,
  // and some around it.
  template <class Body>
  void for_each_run(TensorRange range, int threads, const Body& body);

  // One of a tensor's sums: chunks in their order, lane by lane, then the lanes by halving.
  double sum_of(int32_t tensor, double (ChunkSums::*sum)[kLanes]) const;

  // Compares the sums of what a step read of a layer with the carried ones, and carries those of what it wrote. Returns
  // whether the layer had been written unseen and is scaled. The mode is the present floating-point mode.
  bool carry_sums(int32_t tensor, uint64_t mode);

  std::function<int()> threads_;
  std::vector<int32_t> tensor_of_chunk_;
  std::vector<int64_t> tasks_;        // first chunk of what a thread does in one go; one more entry at the end
  std::vector<int64_t> first_chunk_;  // of each tensor; one more entry at the end
  std::vector<uint64_t> sum_modes_;   // of each layer: the floating-point mode in which its carried sum was taken
  std::vector<uint8_t> has_jumped_;   // of each layer: its sum grew much in the last step
  std::vector<ChunkSums> chunk_sums_;
  std::vector<UpdateCoefficients> coefficients_;
};

// The instruction sets that this build has and this machine runs, the widest first.
std::vector<std::string> instruction_sets();

// Chooses one of them for the whole process; the default is the first. Results have the same bits on all.
// Throws std::invalid_argument for any other name.
void use_instruction_set(const std::string& name);

// How many elements ahead of its loop a step asks for memory. By default that is up to the processor.
int64_t prefetch_distance();

// Chooses it for the whole process; it changes no bit of a result. Throws std::invalid_argument if it is negative or
// larger than a chunk.
void use_prefetch_distance(int64_t elements);

}  // namespace sasgd
