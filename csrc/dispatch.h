// From a dtype, which is known when the program runs, to a type: the one ladder of the CPU and of CUDA.
#pragma once

#include "update_rule.h"

namespace sasgd {

// A type as a value.
template <class T>
struct TypeTag {
  using Type = T;
};

// Calls f with the tag of the type that `Types` has for a dtype.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // on a device f is for the device alone
#endif
template <class Types, class F>
SASGD_HOST_DEVICE auto visit(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(TypeTag<typename Types::BFloat16>{});
    case DType::kFloat16:
      return f(TypeTag<typename Types::Float16>{});
    default:
      return f(TypeTag<typename Types::Float32>{});
  }
}

}  // namespace sasgd
