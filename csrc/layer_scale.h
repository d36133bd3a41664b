// From sums of squares to layer scales: equations (22)-(24) of Zhang, Chen, Liu (2018), in float64, host and device.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "update_rule.h"

namespace sasgd {

constexpr double kCarriedShare = 0.9;                                        // beta
constexpr double kLargestScale = 340282346638528859811704183484516925440.0;  // of float32

// ||W||^2_{2,mu}: the mean over rows of the squared row norm. NaN stays NaN.
SASGD_HOST_DEVICE double floored_row_norm_sq(double row_norm_sq, double eps) {
  return row_norm_sq < eps ? eps : row_norm_sq;
}

// 1 / m / m_{b,W} with m_{b,W} = 1 / ||W||^2_{2,mu}, equations (22) and (24).
SASGD_HOST_DEVICE double layer_scale(double row_norm_sq, double backward_factor, double eps) {
  return floored_row_norm_sq(row_norm_sq, eps) / backward_factor;
}

// s_b = sqrt(max(||W_b||^2_{2,mu}, eps) / (m_b v_b)); of a vector sqrt(1 / (m v)). 0 for a gradient of zeros, which v_b
// = 0 means where it is known. A vanishing gradient is not scaled by infinity. NaN stays NaN.
SASGD_HOST_DEVICE double relative_scale(double row_norm_sq, const LayerTraits& layer, double gradient_norm_sq,
                                        double eps) {
  if (gradient_norm_sq == 0) return 0.0;
  const double numerator = layer.is_vector ? 1.0 : floored_row_norm_sq(row_norm_sq, eps);
  const double scale = sqrt(numerator / (layer.backward_factor * gradient_norm_sq));
  return scale > kLargestScale ? kLargestScale : scale;
}

SASGD_HOST_DEVICE bool is_finite(double x) { return x - x == 0.0; }

// v_b after a step: a running mean of q_b; q_b itself if v_b was not known; v_b if q_b is 0 or not finite. See
// factors.py.
SASGD_HOST_DEVICE double next_gradient_norm_sq(double before, double measured) {
  if (measured == 0 || !is_finite(measured)) return before;
  return before == 0 ? measured : kCarriedShare * before + (1 - kCarriedShare) * measured;
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

// What a tensor's gradient and its weights are multiplied by.
struct Scales {
  double scale;
  double decay;
  bool decays_first;  // in the relative scale: decay is a part of the gradient
};

SASGD_HOST_DEVICE Scales plain_scales(const GroupValues& group) { return {1.0, group.weight_decay, false}; }

SASGD_HOST_DEVICE Scales amended_scales(const GroupValues& group, const LayerTraits& layer, double row_norm_sq,
                                        const PlanOptions& options) {
  const double m = layer.backward_factor, scale = layer_scale(row_norm_sq, m, options.eps);
  return {scale, decay_scale(scale, m, group.weight_decay, options.shape_decay), false};
}

SASGD_HOST_DEVICE Scales relative_scales(const GroupValues& group, const LayerTraits& layer, double row_norm_sq,
                                         double gradient_norm_sq, const PlanOptions& options) {
  const double scale = relative_scale(row_norm_sq, layer, gradient_norm_sq, options.eps);
  const bool decays_first = !options.shape_decay && !layer.is_vector;
  return {scale, decays_first ? scale * group.weight_decay : group.weight_decay, decays_first};
}

// Whether a carried sum of squares is that of the weights; all kinds of NaN are one.
SASGD_HOST_DEVICE bool same_bits(double a, double b) {
  uint64_t bits_of_a, bits_of_b;
  memcpy(&bits_of_a, &a, sizeof a);
  memcpy(&bits_of_b, &b, sizeof b);
  return bits_of_a == bits_of_b || (a != a && b != b);
}

// The coefficients of a tensor from its group's values and, for a scaled layer, its scales.
SASGD_HOST_DEVICE UpdateCoefficients make_coefficients(const GroupValues& group, const Scales& scales,
                                                       double inverse_loss_scale, bool first) {
  const double scale = scales.scale, decay = scales.decay;
  UpdateCoefficients c;
  c.grad_scale = static_cast<float>((group.maximize ? -scale : scale) * inverse_loss_scale);
  const bool decays = group.weight_decay != 0;  // if not, an infinite scale times 0 is no number
  c.decay_scale = decays ? static_cast<float>(decay) : -0.0f;
  c.decay_mask = decays ? ~0u : 0u;
  c.carry = static_cast<float>(first ? 0.0 : group.momentum);
  c.share = static_cast<float>(first ? 1.0 : 1.0 - group.dampening);
  c.momentum = static_cast<float>(group.momentum);
  c.lr = static_cast<float>(group.lr);
  c.plain_scale = static_cast<float>(group.maximize ? -inverse_loss_scale : inverse_loss_scale);
  c.plain_decay = decays && scales.decays_first ? static_cast<float>(group.weight_decay) : -0.0f;
  return c;
}

}  // namespace sasgd
