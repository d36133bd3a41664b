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
extern template void step_kernel<kWords, false, false>(LaunchArgs<kWords>);
extern template void step_kernel<kWords, true, false>(LaunchArgs<kWords>);

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

// bfloat16 weights, rounded by chance in mixed precision; or float32 masters of a parameter in bfloat16.
template <class W, bool kMixedPrecision>
void check_last_chunks() {
  constexpr bool kIsMaster = sizeof(W) == sizeof(float), kStochastic = kMixedPrecision && !kIsMaster;
  Reserved<W> weight;
  Reserved<__nv_bfloat16> grad, param;
  CHECK(weight.is_there() && grad.is_there() && param.is_there(), "no room for addresses");
  // The small ones lead to weights between two numbers of bfloat16.
  const auto gradient = [](int64_t i) { return (i % 2 == 0 ? 0.5f : 0.25f) * (kMixedPrecision ? 0x1p-9f : 1.0f); };
  const int64_t begin = kElements - kChunk - 5;  // of the last two chunks
  for (int64_t i = begin - 5; i < kElements; ++i) {
    weight[i] = narrow<W>(1.0f);
    grad[i] = narrow<__nv_bfloat16>(gradient(i));
  }
  const std::vector<TensorEntry> tensors = {{0, -1, 0, 0, kChunks, 0, false, kStochastic}};
  const std::vector<PrecisionEntry> precision = {{kStream, kIsMaster ? param.address() : 0}};
  const std::vector<Addresses> addresses = {{weight.address(), 0}};
  std::vector<ChunkEntry> chunks(kChunks);
  for (int32_t chunk : {kChunks - 2, kChunks - 1}) {
    const ChunkPlace place = chunk_place(chunk, kElements);
    chunks[chunk] = {place.offset,
                     place.count,
                     0,
                     0,
                     -1,
                     kIsMaster ? DType::kFloat32 : DType::kBFloat16,
                     false,
                     kIsMaster ? DType::kBFloat16 : DType::kFloat32,
                     false,
                     kStochastic};
  }
  unsigned finished_thread_blocks = 0;
  uint8_t flags = 0;
  int64_t rounding_steps = kRoundingStep;
  LaunchArgs<kWords> args{};
  args.header.tables.tensors = tensors.data();
  args.header.tables.addresses = addresses.data();
  args.header.tables.chunks = chunks.data();
  args.header.tables.finished_thread_blocks = &finished_thread_blocks;
  args.header.tables.flags = &flags;
  args.header.tables.precision = precision.data();
  args.header.tables.rounding_steps = &rounding_steps;
  args.header.launch = {0, 1, kChunks - 2, kChunks, 0, {}, {}};
  args.words[0] = grad.address();
  const GroupWords group{{1.0, 0, 0, 0, false, false}, nullptr};
  std::memcpy(&args.words[1], &group, sizeof group);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2);
  config.blockDim = dim3(kThreads);
  cudaLaunchKernelEx(&config, step_kernel<kWords, kMixedPrecision, false>, args);

  for (int64_t i = begin - 5; i < kElements; ++i) {
    const float exact = i < begin ? 1.0f : 1.0f - gradient(i);
    const uint32_t random = random_bits(static_cast<uint32_t>(i), random_key(kStream, kRoundingStep, i));
    const uint16_t by_chance = plain_narrow_by_chance(exact, random);
    const float want = kStochastic ? plain_widen(by_chance, kBFloat16Format) : exact;
    CHECK(widen(weight[i]) == want, "weight %lld: got %g, want %g", static_cast<long long>(i), widen(weight[i]), want);
    const float want_param = !kIsMaster || i < begin ? 0.0f : widen(narrow<__nv_bfloat16>(exact));
    CHECK(widen(param[i]) == want_param, "param %lld: got %g, want %g", static_cast<long long>(i), widen(param[i]),
          want_param);
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
