// One step as the specification has it, element by element in float64: what the plan is held against.
#pragma once

#include <vector>

#include "case.h"

namespace sasgd_test {

// ||W||^2_{2,mu} of each layer.
std::vector<double> plain_row_norm_sq(const Case& now);

// CHECKs every weight, momentum buffer and parameter of a master after a step that was told `inputs`, against those
// before it.
void check_step(const Case& before, const Case& after, const std::vector<Input>& inputs,
                const std::vector<double>& row_norm_sq);

}  // namespace sasgd_test
