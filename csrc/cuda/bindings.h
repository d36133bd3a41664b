// The part of the Python module that is there where the extension was built with CUDA.
#pragma once

#include <pybind11/pybind11.h>

namespace sasgd {

void bind_cuda(pybind11::module_& m);

}  // namespace sasgd
