// What the host lays out for the kernels: tables in device memory, and the arguments of a launch.
#pragma once

#include <cstdint>

#include "../update_rule.h"

namespace sasgd {
namespace cuda {

constexpr int kThreads = 256;  // of a thread block

// Sums of squares are kept for chunks of this many elements. Fixed, so that they do not depend on the device or the
// grid.
constexpr int64_t kChunk = 8192;

// The chunks' sums are added up in a tree: so many neighbours at a time, by one thread, in their order.
constexpr int kFanIn = 16;
constexpr int kMaxLevels = 8;  // 16^8 is more chunks than an int32 can number

// What is fixed about a chunk and its tensor. One load of it leads to all others that a chunk needs, none of which then
// waits for another.
struct alignas(16) ChunkEntry {
  int64_t offset;  // of its first element in the tensor
  int32_t count;   // of its elements
  int32_t tensor;
  int32_t group;  // index into the groups of its launch
  int32_t layer;  // index into the layers, or -1: it is no layer's weight
  DType dtype;    // of the weights, and of the momentum buffer unless that is small
  bool scaled;    // see LayerTraits; false where there is no layer
  // The rest is looked at in mixed precision only, see Precision.
  DType param_dtype;
  bool small_momentum;
  bool stochastic;
};
static_assert(sizeof(ChunkEntry) == 32, "what memory is read by at least");

// What the last thread block needs of a tensor besides its layer.
struct TensorEntry {
  int32_t group;  // as for its chunks, and so are the others
  int32_t layer;
  int32_t root;  // where the tree puts the sums of all its chunks; of layers only
  int32_t first_chunk;
  int32_t chunks;
  int32_t first_node;  // of kTensorTrees
  bool scaled;
  bool stochastic;
};

struct Addresses {
  uint64_t weight;
  uint64_t momentum_buffer;  // null where momentum is 0
};

// What is needed in mixed precision besides.
struct PrecisionEntry {
  uint64_t stream;
  uint64_t param;  // that a master is rounded to, or null
};

// Sums of squares: of the weights before the update, of the weights as stored, and of the plain gradient, which the
// relative scale needs.
struct Sums {
  double read;
  double written;
  double gradient;
};

// Some consecutive entries of Tables::sums that are added up.
struct SumNode {
  int32_t first;
  int32_t count;
};

struct Tables : CarriedState {
  const ChunkEntry* chunks;
  const TensorEntry* tensors;
  const Addresses* addresses;
  const PrecisionEntry* precision;  // in mixed precision only
  const LayerTraits* layers;
  const SumNode* nodes;
  Sums* sums;                        // of the chunks, then of the nodes
  Sums* sums_of_nodes;               // the latter
  unsigned* finished_thread_blocks;  // in kTensorTrees, finished chunks of each tensor
};

// What a launch is for: a step, the norms of weights, or the norms of gradients.
enum class Pass { kStep, kNorms, kGradients };

// Hyperparameters of a parameter group as they stand in a launch's words.
struct GroupWords {
  GroupValues values;
  const float* lr;  // on the device, or null: values.lr
};
constexpr int kGroupWords = sizeof(GroupWords) / sizeof(uint64_t);
static_assert(sizeof(GroupWords) == kGroupWords * sizeof(uint64_t), "groups are sent as whole words");

// A gradient's word is its address, with this bit set if it is float32 while the parameter has 16 bits.
constexpr uint64_t kWideGradient = 1;

// The tensors [first_tensor, end_tensor) with the chunks [first_chunk, end_chunk).
struct Launch {
  int32_t first_tensor;
  int32_t end_tensor;
  int32_t first_chunk;
  int32_t end_chunk;
  int32_t levels;
  int32_t level_begin[kMaxLevels];  // nodes of each level of the tree; they need the levels before
  int32_t level_end[kMaxLevels];
};

struct LaunchHeader {
  Tables tables;
  Launch launch;
  PlanOptions options;
  const float* grad_scale;  // null: 1
  const float* found_inf;   // null: 0
};

// The arguments of a kernel. The words are one gradient for each tensor, 0 for none, then kGroupWords for each group;
// in a norm pass, for each tensor whether it is chosen.
template <int kWords>
struct LaunchArgs {
  LaunchHeader header;
  uint64_t words[kWords];
};

// Where a chunk begins and how many elements it has.
struct ChunkPlace {
  int64_t offset;
  int32_t count;
};

inline ChunkPlace chunk_place(int32_t chunk_of_tensor, int64_t numel) {
  const int64_t offset = chunk_of_tensor * kChunk;
  return {offset, static_cast<int32_t>(numel - offset < kChunk ? numel - offset : kChunk)};
}

}  // namespace cuda
}  // namespace sasgd
