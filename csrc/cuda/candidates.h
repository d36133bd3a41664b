// Other ways to write the kernels, each behind a bit, that only a GPU can judge. The extension has none of them.
//
// tools/cuda_candidates.py builds a module for each; docs/cuda.md, "Candidates", says what they should bring and which
// figures keep them. All that belongs to one is found by its name.
#pragma once

#if !defined(SASGD_CANDIDATES)
#define SASGD_CANDIDATES 0
#endif

namespace sasgd {
namespace cuda {

enum Candidate : unsigned {
  kPrefetch = 1,           // a step's first instructions ask for the tables
  kTensorTrees = 2,        // a tensor's tree is added up as soon as its last chunk is done, the largest tensors first
  kEvictGradients = 4,     // gradients are the first to leave the L2 cache
  kEvictMomentum = 8,      // so are momentum buffers
  kShortArguments = 16,    // the large arguments have 8 KB
  kWithoutEpilogue = 32,   // takes wrong steps: nothing is left for the next one
  kWithoutLookUp = 64,     // takes wrong steps: of one tensor, and without its norm
  kWithoutRelative = 128,  // the relative scale is refused, which saves half of the compiler's time
  kWithoutMixed = 256,     // mixed precision likewise
};

template <Candidate kCandidate>
constexpr bool has = ((SASGD_CANDIDATES)&kCandidate) != 0;

}  // namespace cuda
}  // namespace sasgd
