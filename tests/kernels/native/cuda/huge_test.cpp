// The end of a tensor whose elements an int32 cannot number. Memory that nobody touches takes no room.
#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "../check.h"
#include "../sixteen_bits.h"
#include "cuda/kernels.cuh"
#include "tests.h"

namespace sasgd {
namespace cuda {

// The kernels of the large launches in step.cu: here they would be compiled once more.
constexpr int kWords = 32764 / sizeof(uint64_t) - sizeof(LaunchHeader) / sizeof(uint64_t);
extern template void step_kernel<kWords, false>(LaunchArgs<kWords>);
extern template void step_kernel<kWords, true>(LaunchArgs<kWords>);

}  // namespace cuda
}  // namespace sasgd

namespace sasgd_test {
namespace {

using namespace sasgd;
using namespace sasgd::cuda;

constexpr int64_t kElements = (int64_t{1} << 32) + kChunk + 5;
constexpr int32_t kChunks = static_cast<int32_t>((kElements + kChunk - 1) / kChunk);
constexpr uint64_t kStream = 2018;
constexpr int64_t kRoundingStep = 6;

template <class T>
class Reserved {
 public:
  Reserved()
      : memory_(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Reserved() {
    if (is_there()) munmap(memory_, kBytes);
  }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  bool is_there() const { return memory_ != MAP_FAILED; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }
  T& operator[](int64_t i) { return static_cast<T*>(memory_)[i]; }

 private:
  static constexpr size_t kBytes = static_cast<size_t>(kElements) * sizeof(T);
  void* memory_;
};

// bfloat16 weights, rounded by chance in mixed plans; or float32 ones with a copy in bfloat16.
template <class W, bool kMixed>
void check_last_chunks() {
  constexpr bool kHasCopy = sizeof(W) == sizeof(float), kStochastic = kMixed && !kHasCopy;
  Reserved<W> weight;
  Reserved<__nv_bfloat16> grad, copy;
  CHECK(weight.is_there() && grad.is_there() && copy.is_there(), "no room for addresses");
  // The small ones lead to weights between two numbers of bfloat16.
  const auto gradient = [](int64_t i) { return (i % 2 == 0 ? 0.5f : 0.25f) * (kMixed ? 0x1p-9f : 1.0f); };
  const int64_t begin = kElements - kChunk - 5;  // of the last two chunks
  for (int64_t i = begin - 5; i < kElements; ++i) {
    weight[i] = narrow<W>(1.0f);
    grad[i] = narrow<__nv_bfloat16>(gradient(i));
  }
  const std::vector<TensorEntry> tensors = {{kElements, 0, 0, -1, 0, kHasCopy ? DType::kFloat32 : DType::kBFloat16,
                                             kHasCopy ? DType::kBFloat16 : DType::kFloat32, false, kStochastic}};
  const std::vector<MixedEntry> mixed = {{kStream, kHasCopy ? copy.address() : 0}};
  const std::vector<Addresses> addresses = {{weight.address(), 0}};
  const std::vector<int32_t> tensor_of_chunk(kChunks, 0);
  unsigned finished_blocks = 0;
  uint8_t flags = 0;
  int64_t rounding_steps = kRoundingStep;
  LaunchArgs<kWords> args{};
  args.header.tables.tensors = tensors.data();
  args.header.tables.addresses = addresses.data();
  args.header.tables.tensor_of_chunk = tensor_of_chunk.data();
  args.header.tables.finished_blocks = &finished_blocks;
  args.header.tables.flags = &flags;
  args.header.tables.mixed = mixed.data();
  args.header.tables.rounding_steps = &rounding_steps;
  args.header.launch = {0, 1, kChunks - 2, kChunks, 0, {}, {}};
  args.words[0] = grad.address();
  const GroupWords group{{1.0, 0, 0, 0, false, false}, nullptr};
  std::memcpy(&args.words[1], &group, sizeof group);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2);
  config.blockDim = dim3(kThreads);
  cudaLaunchKernelEx(&config, step_kernel<kWords, kMixed>, args);

  for (int64_t i = begin - 5; i < kElements; ++i) {
    const float exact = i < begin ? 1.0f : 1.0f - gradient(i);
    const uint32_t random = random_bits(static_cast<uint32_t>(i), random_key(kStream, kRoundingStep, i));
    const uint16_t by_chance = plain_narrow_by_chance(exact, random);
    const float want = kStochastic ? plain_widen(by_chance, kBFloat16Format) : exact;
    CHECK(widen(weight[i]) == want, "weight %lld: got %g, want %g", static_cast<long long>(i), widen(weight[i]), want);
    const float want_copy = !kHasCopy || i < begin ? 0.0f : widen(narrow<__nv_bfloat16>(exact));
    CHECK(widen(copy[i]) == want_copy, "copy %lld: got %g, want %g", static_cast<long long>(i), widen(copy[i]),
          want_copy);
  }
}

}  // namespace

void test_cuda_huge() {
  CHECK(chunk_place(kChunks - 1, kElements).offset == (int64_t{1} << 32) + kChunk, "the last chunk's offset");
  CHECK(chunk_place(kChunks - 1, kElements).count == 5, "the last chunk's count");
  check_last_chunks<__nv_bfloat16, false>();
  check_last_chunks<__nv_bfloat16, true>();
  check_last_chunks<float, true>();
}

}  // namespace sasgd_test
