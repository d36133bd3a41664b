// The CUDA part as a Python module of its own: a candidate of the kernels, see candidates.h. The extension has the part
// without this file.
#include "bindings.h"

PYBIND11_MODULE(candidate, m) { sasgd::bind_cuda(m); }
