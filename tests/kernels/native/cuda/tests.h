// What the program can be told to do. Failures are counted by CHECK.
#pragma once

namespace sasgd_test {

void test_cuda_steps();      // against a double loop
void test_cuda_bits();       // the same bits from every grid, schedule and bound on resident thread blocks
void test_cuda_carried();    // flags, skipped steps, kept norms, norms of weights that were written unseen
void test_cuda_relative();   // the relative scale
void test_cuda_precision();  // masters, small momentum, stochastic rounding
void test_cuda_huge();       // elements after the 2^31st of one tensor
void test_cuda_threads();    // few thread blocks, for the thread sanitizer

}  // namespace sasgd_test
