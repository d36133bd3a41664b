// From sums of squares to layer scales: equations (22)-(24) of Zhang, Chen, Liu (2018), in float64, host and device.
#pragma once

#include <cstring>
#include <vector>

#include "update_rule.h"

namespace sasgd {

// ||W||^2_{2,mu}: the mean over rows of the squared row norm. NaN stays NaN.
SASGD_HOST_DEVICE double floored_row_norm_sq(double row_norm_sq, double eps) {
  return row_norm_sq < eps ? eps : row_norm_sq;
}

// 1 / m / m_{b,W} with m_{b,W} = 1 / ||W||^2_{2,mu}, equations (22) and (24).
SASGD_HOST_DEVICE double layer_scale(double row_norm_sq, double backward_factor, double eps) {
  return floored_row_norm_sq(row_norm_sq, eps) / backward_factor;
}

// Gives all layers their m, if none has one: equation (23) from m = 1 at the output of the last layer downwards.
// m_{b,z} = ||W^T||^2 / ||W||^2 = rows / columns is never formed as a quotient of two sums, so that a zero or
// non-finite layer cannot poison the others.
inline void fill_backward_factors(std::vector<LayerInfo>& layers) {
  for (const LayerInfo& layer : layers) {
    if (layer.backward_factor != 0) return;
  }
  double m = 1.0;
  for (size_t b = layers.size(); b-- > 0;) {
    layers[b].backward_factor = m;
    m *= layers[b].rows / layers[b].columns;
  }
}

// d_b: decay first, then the scale (the paper's footnote 5), or the shape's part of the scale alone.
SASGD_HOST_DEVICE double decay_scale(double scale, double backward_factor, double weight_decay, bool shape_decay) {
  return shape_decay ? weight_decay / backward_factor : scale * weight_decay;
}

// Whether a carried sum of squares is that of the weights; all kinds of NaN are one.
SASGD_HOST_DEVICE bool same_bits(double a, double b) {
  uint64_t bits_of_a, bits_of_b;
  memcpy(&bits_of_a, &a, sizeof a);
  memcpy(&bits_of_b, &b, sizeof b);
  return bits_of_a == bits_of_b || (a != a && b != b);
}

SASGD_HOST_DEVICE bool is_finite(double x) { return x - x == 0.0; }

// The coefficients of a tensor from its group's values and, for a scaled layer, its scales.
SASGD_HOST_DEVICE UpdateCoefficients make_coefficients(const GroupValues& group, double scale, double decay,
                                                       double inverse_loss_scale, bool first) {
  UpdateCoefficients c;
  c.grad_scale = static_cast<float>((group.maximize ? -scale : scale) * inverse_loss_scale);
  const bool decays = group.weight_decay != 0;  // if not, an infinite scale times 0 is no number
  c.decay_scale = decays ? static_cast<float>(decay) : -0.0f;
  c.decay_mask = decays ? ~0u : 0u;
  c.carry = static_cast<float>(first ? 0.0 : group.momentum);
  c.share = static_cast<float>(first ? 1.0 : 1.0 - group.dampening);
  c.momentum = static_cast<float>(group.momentum);
  c.lr = static_cast<float>(group.lr);
  return c;
}

}  // namespace sasgd
