// The arithmetic of one element of a step, for the CPU and CUDA alike: the only place where it stands in C++. Its twin
// in Triton's language is sasgd_fused/backends/triton/update_rule.py.
//
// V is float, or a vector of floats with the same operators. No operation is contracted into a fused multiply-add
// (the build passes -ffp-contract=off, and -fmad=false to nvcc), so every width and instruction set gives the same
// bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "plan.h"

#if defined(__CUDACC__)
#define SASGD_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Static, so that no file takes the code that another one compiled for instructions that the machine may lack.
#define SASGD_HOST_DEVICE static inline
#endif

namespace sasgd {

// The coefficients of one tensor in one step, rounded once from float64.
struct UpdateCoefficients {
  float grad_scale;     // s_b, or 1; negated for maximize, divided by the loss scale
  float decay_scale;    // d_b, or weight_decay; without decay -0: adding -0 * 0 changes no bit
  uint32_t decay_mask;  // 0 without decay, else all bits: compilers make two loops of a condition
  float carry;          // momentum, or 0 on this tensor's first update
  float share;          // 1 - dampening, or 1 on this tensor's first update
  float momentum;
  float lr;
  // Of the gradient whose norm the relative scale divides by.
  float plain_scale;  // 1; negated for maximize, divided by the loss scale
  float plain_decay;  // weight_decay where it is a part of that gradient, else -0
};

enum class Momentum { kNone, kClassic, kNesterov };

// The bits of a number that are set in the mask.
SASGD_HOST_DEVICE float masked(float x, uint32_t mask) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= mask;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// g = s_b grad + d_b W. Without decay it is s_b grad to the bit, whatever the weight: it may be infinite.
template <class V>
SASGD_HOST_DEVICE V amended_gradient(V grad, V weight, const UpdateCoefficients& c) {
  return c.grad_scale * grad + c.decay_scale * masked(weight, c.decay_mask);
}

// grad + weight_decay W, before any scale: what the squared norms q_b are taken of.
template <class V>
SASGD_HOST_DEVICE V plain_gradient(V grad, V weight, const UpdateCoefficients& c) {
  return c.plain_scale * grad + c.plain_decay * masked(weight, c.decay_mask);
}

// buf = momentum * buf + (1 - dampening) * g
template <class V>
SASGD_HOST_DEVICE V next_momentum(V g, V momentum_buffer, const UpdateCoefficients& c) {
  return c.carry * momentum_buffer + c.share * g;
}

// What the weights move along: g, buf, or g + momentum * buf.
template <Momentum kMomentum, class V>
SASGD_HOST_DEVICE V direction(V g, V momentum_buffer, const UpdateCoefficients& c) {
  if constexpr (kMomentum == Momentum::kNone) {
    return g;
  } else if constexpr (kMomentum == Momentum::kClassic) {
    return momentum_buffer;
  } else {
    return g + c.momentum * momentum_buffer;
  }
}

// W = W - lr * direction
template <class V>
SASGD_HOST_DEVICE V next_weight(V weight, V along, const UpdateCoefficients& c) {
  return weight - c.lr * along;
}

// Random numbers for stochastic rounding are a function of the tensor's stream, its count of such steps and the place
// of the element in memory: so they are the same on every device, with any number of threads, and after resuming.

// Of a step and of all elements whose places have these high 32 bits.
struct RandomKey {
  uint32_t low;
  uint32_t high;
};

// SplitMix64's finalizer (Steele, Lea, Flood 2014): every bit of the result depends on every bit.
SASGD_HOST_DEVICE uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

SASGD_HOST_DEVICE RandomKey random_key(uint64_t stream, int64_t rounding_step, int64_t offset) {
  const uint64_t of_step = mix(stream + static_cast<uint64_t>(rounding_step));
  const uint64_t key = mix(of_step + (static_cast<uint64_t>(offset) >> 32));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

// All of `random_bits` but its last operation, which leaves the upper half as it is.
template <class U>
SASGD_HOST_DEVICE U unfolded_random_bits(U place, RandomKey key) {
  U x = (place ^ key.low) * 0x85ebca6bu;
  x = ((x ^ (x >> 16)) ^ key.high) * 0xc2b2ae35u;
  return (x ^ (x >> 15)) * 0x27d4eb2fu;
}

// 32 random bits for each element, from the low 32 bits of its place. U is uint32_t, or a vector of them.
template <class U>
SASGD_HOST_DEVICE U random_bits(U place, RandomKey key) {
  const U x = unfolded_random_bits(place, key);
  return x ^ (x >> 16);
}

// The upper half of a float32's bits, rounded up as often as the lower half is large: so its mean is the float32.
// Takes the low 16 random bits. Not for NaN.
template <class U>
SASGD_HOST_DEVICE U stochastic_upper_half(U bits, U random) {
  return (bits + (random & 0xffffu)) >> 16;
}

}  // namespace sasgd
