#include "double_loop.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace sasgd_test {
namespace {

// Some float32 operations for each element, and the float32 sums in its norm.
constexpr double kArithmetic = 0x1p-21;

struct Scales {
  double gradient;  // s_b
  double decay;     // d_b
};

// In the relative scale, whether weight decay is a part of the gradient before any scale.
bool decays_first(const Case& now, const LayerInfo& layer) { return !now.options.shape_decay && !layer.is_vector; }

// s_b = sqrt(max(||W||^2_{2,mu}, eps) / (m_b v_b)), of a vector without the weights' norm; 0 for a gradient of zeros.
std::vector<Scales> relative_scales(const Case& now, const std::vector<double>& row_norm_sq,
                                    const std::vector<double>& gradient_norm_sq) {
  std::vector<Scales> scales;
  for (const Tensor& tensor : now.tensors) scales.push_back({1.0, now.groups[tensor.info.group].weight_decay});
  for (size_t b = 0; b < now.layers.size(); ++b) {
    const LayerInfo& layer = now.layers[b];
    if (!layer.scaled) continue;
    Scales& s = scales[layer.tensor];
    const double v = gradient_norm_sq[static_cast<size_t>(layer.tensor)];
    const double length = layer.is_vector ? 1 : std::sqrt(std::max(row_norm_sq[b], now.options.eps));
    s.gradient = v == 0 ? 0 : length / std::sqrt(layer.backward_factor * v);
    if (decays_first(now, layer)) s.decay *= s.gradient;
  }
  return scales;
}

// Equations (22)-(24) for the layers; 1 and weight_decay for all else.
std::vector<Scales> amended_scales(const Case& now, const std::vector<double>& row_norm_sq) {
  std::vector<Scales> scales;
  for (const Tensor& tensor : now.tensors) scales.push_back({1.0, now.groups[tensor.info.group].weight_decay});
  double m = 1;
  for (size_t b = now.layers.size(); b-- > 0;) {
    const LayerInfo& layer = now.layers[b];
    Scales& s = scales[layer.tensor];
    if (layer.backward_factor != 0) m = layer.backward_factor;
    if (layer.scaled) {
      s.gradient = std::max(row_norm_sq[b], now.options.eps) / m;
      s.decay *= now.options.shape_decay ? 1 / m : s.gradient;
    }
    m = m * layer.rows / layer.columns;
  }
  return scales;
}

// Half the distance between the numbers of a dtype around x.
double rounding(double x, DType dtype) {
  if (dtype == DType::kBFloat16) return std::fabs(x) * 0x1p-8;
  if (dtype == DType::kFloat16) return std::max(std::fabs(x) * 0x1p-11, 0x1p-25);
  return std::fabs(x) * 0x1p-24;
}

bool is_same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void check_number(const char* what, size_t t, int64_t i, double got, double want, double size, const Tensor& tensor,
                  DType dtype) {
  // By chance it may be the farther one of the two numbers around it.
  const double steps = tensor.info.precision.stochastic && dtype == DType::kBFloat16 ? 2 : 1;
  CHECK(is_same(got, want) || std::fabs(got - want) <= steps * rounding(want, dtype) + kArithmetic * size,
        "%s %zu[%lld]: got %.9g, want %.9g", what, t, static_cast<long long>(i), got, want);
}

// A parameter is its master as stored, rounded to nearest.
void check_param(size_t t, int64_t i, const Tensor& tensor) {
  const Format format = tensor.param.dtype() == DType::kBFloat16 ? kBFloat16Format : kFloat16Format;
  const double got = tensor.param.get(i);
  const double want = plain_widen(plain_narrow(static_cast<float>(tensor.weight.get(i)), format), format);
  CHECK(is_same(got, want), "param %zu[%lld]: got %.9g, want %.9g", t, static_cast<long long>(i), got, want);
}

}  // namespace

std::vector<double> plain_row_norm_sq(const Case& now) {
  std::vector<double> norms;
  for (const LayerInfo& layer : now.layers) {
    const Tensor& tensor = now.tensors[layer.tensor];
    double sum = 0;
    for (int64_t i = 0; i < tensor.info.numel; ++i) sum += tensor.weight.get(i) * tensor.weight.get(i);
    norms.push_back(sum / layer.rows);
  }
  return norms;
}

std::vector<double> plain_gradient_norm_sq(const Case& now) {
  std::vector<double> norms(now.tensors.size());
  for (const LayerInfo& layer : now.layers) {
    if (!layer.scaled) continue;
    const Tensor& tensor = now.tensors[layer.tensor];
    const GroupValues& group = now.groups[tensor.info.group];
    const double grad_scale = (group.maximize ? -1 : 1) / now.loss_scale;
    const double decay = decays_first(now, layer) ? group.weight_decay : 0;
    for (int64_t i = 0; i < tensor.info.numel; ++i) {
      const double g = grad_scale * tensor.grad.get(i) + (decay == 0 ? 0 : decay * tensor.weight.get(i));
      norms[static_cast<size_t>(layer.tensor)] += g * g;
    }
  }
  return norms;
}

void check_step(const Case& before, const Case& after, const std::vector<Input>& inputs,
                const std::vector<double>& row_norm_sq, const std::vector<double>& gradient_norm_sq) {
  const std::vector<Scales> scales = before.options.relative ? relative_scales(before, row_norm_sq, gradient_norm_sq)
                                                             : amended_scales(before, row_norm_sq);
  for (size_t t = 0; t < before.tensors.size(); ++t) {
    const Tensor& old = before.tensors[t];
    const Tensor& now = after.tensors[t];
    CHECK(now.grad == old.grad, "gradient %zu was written", t);
    if (!inputs[t].grad) {
      CHECK(now.is_same(old), "idle tensor %zu was written", t);
      continue;
    }
    const GroupValues& group = before.groups[old.info.group];
    const double grad_scale = (group.maximize ? -1 : 1) * scales[t].gradient / before.loss_scale;
    for (int64_t i = 0; i < old.info.numel; ++i) {
      const double w = old.weight.get(i), grad = grad_scale * old.grad.get(i), decay = scales[t].decay * w;
      double along = grad + decay;
      double size = std::fabs(grad) + std::fabs(decay);  // of what is added up, for its rounding
      if (group.momentum != 0) {
        const double carried = group.momentum * old.momentum_buffer.get(i);
        const double g = along;
        const double buffer = !old.started ? g : carried + (1 - group.dampening) * g;
        size += std::fabs(carried);
        check_number("momentum", t, i, now.momentum_buffer.get(i), buffer, size, old, old.momentum_buffer.dtype());
        along = group.nesterov ? g + group.momentum * buffer : buffer;
        if (group.nesterov) size *= 2;
      }
      check_number("weight", t, i, now.weight.get(i), w - group.lr * along, std::fabs(w) + group.lr * size, old,
                   old.info.dtype);
      if (old.has_param()) check_param(t, i, now);
    }
  }
}

}  // namespace sasgd_test
