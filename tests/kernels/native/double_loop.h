// One step as the specification has it, element by element in float64: what the plan is held against.
#pragma once

#include <vector>

#include "case.h"

namespace sasgd_test {

// ||W||^2_{2,mu} of each layer.
std::vector<double> plain_row_norm_sq(const Case& now);

// q_b of each tensor that is a scaled layer's: the squared norm of its gradient, unscaled and with what weight decay
// adds to it before any scale. 0 for the others.
std::vector<double> plain_gradient_norm_sq(const Case& now);

// CHECKs every weight, momentum buffer and parameter of a master after a step that was told `inputs`, against those
// before it. gradient_norm_sq is v_b of each tensor, in the relative scale.
void check_step(const Case& before, const Case& after, const std::vector<Input>& inputs,
                const std::vector<double>& row_norm_sq, const std::vector<double>& gradient_norm_sq = {});

}  // namespace sasgd_test
