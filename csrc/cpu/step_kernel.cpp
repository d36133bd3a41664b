// The loops over the chunks of a tensor. Compiled once for each instruction set, with SASGD_ISA as its namespace.
//
// Everything here has internal linkage or lives in that namespace: an inline function that the linker could share
// with other files might be compiled here for instructions that the machine lacks.
#include "kernels.h"
#include "lanes.h"

namespace sasgd {
namespace SASGD_ISA {
namespace {

// Squares are summed in float32 over at most this many elements, from there on in float64.
constexpr int64_t kSpan = 1024;
static_assert(kSpan % kLanes == 0 && kChunk % kSpan == 0, "only the last span of a tensor has a tail");

// Fewer than kLanes elements in a buffer of kLanes, the rest zero: tails go through the same code as the rest.
template <class T>
struct Padded {
  typename T::Stored values[kLanes] = {};
  Padded(const typename T::Stored* from, int64_t count) { std::memcpy(values, from, count * sizeof values[0]); }
};

template <class W, class G, Momentum kMomentum>
inline Lanes update_lanes(typename W::Stored* weight, const typename G::Stored* grad,
                          typename W::Stored* momentum_buffer, Lanes w, const UpdateCoefficients& c) {
  const Lanes g = amended_gradient(load<G>(grad), w, c);
  Lanes buffer{};
  if constexpr (kMomentum != Momentum::kNone) {
    buffer = next_momentum(g, load<W>(momentum_buffer), c);
    store<W>(momentum_buffer, buffer);
  }
  return store<W>(weight, next_weight(w, direction<kMomentum>(g, buffer, c), c));
}

template <class W, class G, Momentum kMomentum, bool kSumSquares>
void update(const RunStep& run) {
  using Weight = typename W::Stored;
  Weight* weight = static_cast<Weight*>(run.weight);
  const typename G::Stored* grad = static_cast<const typename G::Stored*>(run.grad);
  // Without momentum any valid address will do: nothing is loaded from it but a tail that nobody uses.
  Weight* momentum_buffer = kMomentum == Momentum::kNone ? weight : static_cast<Weight*>(run.momentum_buffer);
  const UpdateCoefficients c = run.coefficients;
  ChunkSums sums{};

  for (int64_t begin = 0; begin < run.count; begin += kSpan) {
    const int64_t end = begin + kSpan < run.count ? begin + kSpan : run.count;
    Lanes read{}, written{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Lanes before = load<W>(weight + i);
      const Lanes after = update_lanes<W, G, kMomentum>(weight + i, grad + i, momentum_buffer + i, before, c);
      if constexpr (kSumSquares) {
        read = read + before * before;
        written = written + after * after;
      }
    }
    if (i < end) {
      const int64_t tail = end - i;
      Padded<W> w(weight + i, tail);
      const Padded<G> g(grad + i, tail);
      Padded<W> m(momentum_buffer + i, tail);
      const Lanes before = load<W>(w.values);
      const Lanes after = update_lanes<W, G, kMomentum>(w.values, g.values, m.values, before, c);
      std::memcpy(weight + i, w.values, tail * sizeof(Weight));
      if constexpr (kMomentum != Momentum::kNone) std::memcpy(momentum_buffer + i, m.values, tail * sizeof(Weight));
      if constexpr (kSumSquares) {
        read = read + before * before;
        written = written + after * after;
      }
    }
    if constexpr (kSumSquares) {
      add_lanes(sums.read, read);
      add_lanes(sums.written, written);
      if (end % kChunk == 0 || end == run.count) {
        run.sums[begin / kChunk] = sums;
        sums = {};
      }
    }
  }
}

template <class W>
void sum_squares(const void* from, int64_t count, ChunkSums* out) {
  const typename W::Stored* weight = static_cast<const typename W::Stored*>(from);
  ChunkSums sums{};
  for (int64_t begin = 0; begin < count; begin += kSpan) {
    const int64_t end = begin + kSpan < count ? begin + kSpan : count;
    Lanes squares{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Lanes w = load<W>(weight + i);
      squares = squares + w * w;
    }
    if (i < end) {
      const Lanes w = load<W>(Padded<W>(weight + i, end - i).values);
      squares = squares + w * w;
    }
    add_lanes(sums.written, squares);
    if (end % kChunk == 0 || end == count) {
      out[begin / kChunk] = sums;
      sums = {};
    }
  }
}

template <class W, class G, Momentum kMomentum>
void update_with_sums(const RunStep& run) {
  run.sums ? update<W, G, kMomentum, true>(run) : update<W, G, kMomentum, false>(run);
}

template <class W, class G>
void update_with_momentum(const RunStep& run) {
  if (!run.momentum_buffer) return update_with_sums<W, G, Momentum::kNone>(run);
  if (run.nesterov) return update_with_sums<W, G, Momentum::kNesterov>(run);
  return update_with_sums<W, G, Momentum::kClassic>(run);
}

template <class W>
void update_with_grad(const RunStep& run) {
  return run.grad_dtype == run.dtype ? update_with_momentum<W, W>(run) : update_with_momentum<W, Float32>(run);
}

void update_any(const RunStep& run) {
  switch (run.dtype) {
    case DType::kBFloat16:
      return update_with_grad<BFloat16>(run);
    case DType::kFloat16:
      return update_with_grad<Float16>(run);
    default:
      return update_with_momentum<Float32, Float32>(run);
  }
}

void sum_squares_any(const void* weight, int64_t count, DType dtype, ChunkSums* sums) {
  switch (dtype) {
    case DType::kBFloat16:
      return sum_squares<BFloat16>(weight, count, sums);
    case DType::kFloat16:
      return sum_squares<Float16>(weight, count, sums);
    default:
      return sum_squares<Float32>(weight, count, sums);
  }
}

#define SASGD_NAME_(isa) #isa
#define SASGD_NAME(isa) SASGD_NAME_(isa)

}  // namespace

extern const Kernels kKernels;  // a const is internal unless declared otherwise
const Kernels kKernels = {SASGD_NAME(SASGD_ISA), update_any, sum_squares_any};

}  // namespace SASGD_ISA
}  // namespace sasgd
