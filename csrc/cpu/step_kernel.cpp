// The loops over the chunks of a tensor. Compiled once for each instruction set, with SASGD_ISA as its namespace.
//
// Everything here has internal linkage or lives in that namespace: an inline function that the linker could share
// with other files might be compiled here for instructions that the machine lacks.
#include <type_traits>

#include "../dispatch.h"
#include "kernels.h"
#include "lanes.h"

namespace sasgd {
namespace SASGD_ISA {
namespace {

// Squares are summed in float32 over at most this many elements, from there on in float64.
constexpr int64_t kSpan = 1024;
static_assert(kSpan % kLanes == 0 && kChunk % kSpan == 0, "only the last span of a tensor has a tail");

// The element ahead may lie behind the tensor, where no pointer may point: so its address is a number.
template <bool kToWrite, class T>
inline void prefetch(const T* from, int64_t ahead) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(from) + static_cast<uint64_t>(ahead) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address), kToWrite);
}

// Fewer than kLanes elements in a buffer of kLanes, the rest zero: tails go through the same code as the rest.
template <class T>
struct Padded {
  typename T::Stored values[kLanes] = {};
  Padded(const typename T::Stored* from, int64_t count) { std::memcpy(values, from, count * sizeof values[0]); }
};

template <class W, class G, class M, Momentum kMomentum>
inline Lanes update_lanes(typename W::Stored* weight, const typename G::Stored* grad,
                          typename M::Stored* momentum_buffer, Lanes w, const UpdateCoefficients& c, int64_t place,
                          RandomKey key) {
  const Lanes g = amended_gradient(load<G>(grad), w, c);
  Words random{};
  if constexpr (W::kStochastic || M::kStochastic) random = unfolded_random_lanes(place, key);
  Lanes buffer{};
  if constexpr (kMomentum != Momentum::kNone) {
    buffer = next_momentum(g, load<M>(momentum_buffer), c);
    store<M>(momentum_buffer, buffer, upper_halves(random));
  }
  return store<W>(weight, next_weight(w, direction<kMomentum>(g, buffer, c), c), folded(random));
}

// Rounds masters to their parameter.
template <class T>
void store_param(const float* weight, void* param, int64_t count) {
  typename T::Stored* to = static_cast<typename T::Stored*>(param);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store<T>(to + i, load<Float32>(weight + i));
  if (i < count) {
    typename T::Stored rounded[kLanes];
    store<T>(rounded, load<Float32>(Padded<Float32>(weight + i, count - i).values));
    std::memcpy(to + i, rounded, (count - i) * sizeof rounded[0]);
  }
}

// Which sums a step takes.
enum class Taken { kNone, kWeights, kGradientToo };

// Flattened, because otherwise GCC leaves calls in the inner loop of some of its many forms.
template <class W, class G, class M, Momentum kMomentum, Taken kTaken>
__attribute__((flatten)) void update(const RunStep& run) {
  using Weight = typename W::Stored;
  using Buffer = typename M::Stored;
  Weight* weight = static_cast<Weight*>(run.weight);
  const typename G::Stored* grad = static_cast<const typename G::Stored*>(run.grad);
  // Without momentum any valid address will do: nothing is loaded from it but a tail that nobody uses.
  Buffer* momentum_buffer = static_cast<Buffer*>(kMomentum == Momentum::kNone ? run.weight : run.momentum_buffer);
  const UpdateCoefficients c = run.coefficients;
  const int64_t ahead = run.prefetch_distance;
  constexpr bool kSumSquares = kTaken != Taken::kNone;

  for (int64_t begin = 0; begin < run.count; begin += kSpan) {
    const int64_t end = begin + kSpan < run.count ? begin + kSpan : run.count;
    const int64_t place = run.offset + begin;  // its high 32 bits are those of the whole span
    RandomKey key{};
    if constexpr (W::kStochastic || M::kStochastic) key = random_key(run.precision.stream, run.rounding_step, place);
    Lanes read{}, written{}, gradient{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      prefetch<true>(weight + i, ahead);
      prefetch<false>(grad + i, ahead);
      if constexpr (kMomentum != Momentum::kNone) prefetch<true>(momentum_buffer + i, ahead);
      const Lanes before = load<W>(weight + i);
      if constexpr (kTaken == Taken::kGradientToo) {
        const Lanes g = plain_gradient(load<G>(grad + i), before, c);
        gradient = gradient + g * g;
      }
      const Lanes after =
          update_lanes<W, G, M, kMomentum>(weight + i, grad + i, momentum_buffer + i, before, c, run.offset + i, key);
      if constexpr (kSumSquares) {
        read = read + before * before;
        written = written + after * after;
      }
    }
    if (i < end) {
      const int64_t tail = end - i;
      Padded<W> w(weight + i, tail);
      const Padded<G> g(grad + i, tail);
      Padded<M> m(momentum_buffer + i, tail);
      const Lanes before = load<W>(w.values);
      if constexpr (kTaken == Taken::kGradientToo) {
        const Lanes plain = plain_gradient(load<G>(g.values), before, c);
        gradient = gradient + plain * plain;
      }
      const Lanes after =
          update_lanes<W, G, M, kMomentum>(w.values, g.values, m.values, before, c, run.offset + i, key);
      std::memcpy(weight + i, w.values, tail * sizeof(Weight));
      if constexpr (kMomentum != Momentum::kNone) std::memcpy(momentum_buffer + i, m.values, tail * sizeof(Buffer));
      if constexpr (kSumSquares) {
        read = read + before * before;
        written = written + after * after;
      }
    }
    if constexpr (std::is_same_v<W, Float32>) {
      if (run.param) {  // the span is still in the nearest cache
        const auto round = run.precision.param_dtype == DType::kBFloat16 ? store_param<BFloat16> : store_param<Float16>;
        round(weight + begin, static_cast<uint16_t*>(run.param) + begin, end - begin);
      }
    }
    if constexpr (kSumSquares) {
      ChunkSums& sums = run.sums[begin / kChunk];
      const bool begins = begin % kChunk == 0;
      add_lanes(sums.read, read, begins);
      add_lanes(sums.written, written, begins);
      if constexpr (kTaken == Taken::kGradientToo) add_lanes(sums.gradient, gradient, begins);
    }
  }
}

template <class W>
void sum_squares(const void* from, int64_t count, ChunkSums* out) {
  const typename W::Stored* weight = static_cast<const typename W::Stored*>(from);
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
    add_lanes(out[begin / kChunk].written, squares, begin % kChunk == 0);
  }
}

// The same elements in the same order as `update` has them.
template <class W, class G>
void sum_gradients(const RunStep& run) {
  const typename W::Stored* weight = static_cast<const typename W::Stored*>(run.weight);
  const typename G::Stored* grad = static_cast<const typename G::Stored*>(run.grad);
  const UpdateCoefficients c = run.coefficients;
  for (int64_t begin = 0; begin < run.count; begin += kSpan) {
    const int64_t end = begin + kSpan < run.count ? begin + kSpan : run.count;
    Lanes gradient{};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Lanes g = plain_gradient(load<G>(grad + i), load<W>(weight + i), c);
      gradient = gradient + g * g;
    }
    if (i < end) {
      const Padded<W> w(weight + i, end - i);
      const Lanes g = plain_gradient(load<G>(Padded<G>(grad + i, end - i).values), load<W>(w.values), c);
      gradient = gradient + g * g;
    }
    add_lanes(run.sums[begin / kChunk].gradient, gradient, begin % kChunk == 0);
  }
}

template <class W, class G, class M, Momentum kMomentum>
void update_with_sums(const RunStep& run) {
  if (!run.sums) return update<W, G, M, kMomentum, Taken::kNone>(run);
  run.takes_gradient ? update<W, G, M, kMomentum, Taken::kGradientToo>(run)
                     : update<W, G, M, kMomentum, Taken::kWeights>(run);
}

template <class W, class G, class M>
void update_with_momentum(const RunStep& run) {
  if (!run.momentum_buffer) return update_with_sums<W, G, W, Momentum::kNone>(run);
  if (run.nesterov) return update_with_sums<W, G, M, Momentum::kNesterov>(run);
  return update_with_sums<W, G, M, Momentum::kClassic>(run);
}

struct Types {
  using Float32 = SASGD_ISA::Float32;
  using BFloat16 = SASGD_ISA::BFloat16;
  using Float16 = SASGD_ISA::Float16;
};

// Weights as W, gradients as T or float32.
template <class W, class T>
void update_16_bits(const RunStep& run) {
  run.grad_dtype == DType::kFloat32 ? update_with_momentum<W, Float32, W>(run) : update_with_momentum<W, T, W>(run);
}

void update_any(const RunStep& run) {
  const bool stochastic = run.precision.stochastic;
  visit<Types>(run.dtype, [&](auto weight) {
    using W = typename decltype(weight)::Type;
    if constexpr (std::is_same_v<W, BFloat16>) {
      stochastic ? update_16_bits<StochasticBFloat16, W>(run) : update_16_bits<W, W>(run);
    } else if constexpr (std::is_same_v<W, Float16>) {
      update_16_bits<W, W>(run);
    } else {
      visit<Types>(run.grad_dtype, [&](auto grad) {
        using G = typename decltype(grad)::Type;
        if (!run.precision.small_momentum) return update_with_momentum<W, G, W>(run);
        stochastic ? update_with_momentum<W, G, StochasticBFloat16>(run) : update_with_momentum<W, G, BFloat16>(run);
      });
    }
  });
}

void sum_squares_any(const void* weight, int64_t count, DType dtype, ChunkSums* sums) {
  visit<Types>(dtype, [&](auto type) { sum_squares<typename decltype(type)::Type>(weight, count, sums); });
}

void sum_gradients_any(const RunStep& run) {
  visit<Types>(run.dtype, [&](auto weight) {
    using W = typename decltype(weight)::Type;
    if constexpr (std::is_same_v<W, Float32>) {
      visit<Types>(run.grad_dtype, [&](auto grad) { sum_gradients<W, typename decltype(grad)::Type>(run); });
    } else {
      run.grad_dtype == DType::kFloat32 ? sum_gradients<W, Float32>(run) : sum_gradients<W, W>(run);
    }
  });
}

#define SASGD_NAME_(isa) #isa
#define SASGD_NAME(isa) SASGD_NAME_(isa)

}  // namespace

extern const Kernels kKernels;  // a const is internal unless declared otherwise
const Kernels kKernels = {SASGD_NAME(SASGD_ISA), update_any, sum_squares_any, sum_gradients_any};

}  // namespace SASGD_ISA
}  // namespace sasgd
