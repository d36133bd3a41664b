// The end of a tensor whose elements an int32 cannot number. Memory that nobody touches takes no room.
#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "../check.h"
#include "cuda/kernels.cuh"
#include "tests.h"

namespace sasgd_test {
namespace {

using namespace sasgd;
using namespace sasgd::cuda;

constexpr int64_t kElements = (int64_t{1} << 32) + kChunk + 5;
constexpr int32_t kChunks = static_cast<int32_t>((kElements + kChunk - 1) / kChunk);
constexpr int kWords = 64;

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
  __nv_bfloat16& operator[](int64_t i) { return static_cast<__nv_bfloat16*>(memory_)[i]; }

 private:
  static constexpr size_t kBytes = static_cast<size_t>(kElements) * sizeof(__nv_bfloat16);
  void* memory_;
};

}  // namespace

void test_cuda_huge() {
  CHECK(chunk_place(kChunks - 1, kElements).offset == (int64_t{1} << 32) + kChunk, "the last chunk's offset");
  CHECK(chunk_place(kChunks - 1, kElements).count == 5, "the last chunk's count");

  Reserved weight, grad;
  CHECK(weight.is_there() && grad.is_there(), "no room for addresses");
  const int64_t begin = kElements - kChunk - 5;  // of the last two chunks
  for (int64_t i = begin - 5; i < kElements; ++i) {
    weight[i] = __float2bfloat16_rn(1.0f);
    grad[i] = __float2bfloat16_rn(i % 2 == 0 ? 0.5f : 0.25f);
  }
  const std::vector<TensorEntry> tensors = {{kElements, 0, 0, -1, 0, DType::kBFloat16}};
  const std::vector<Addresses> addresses = {{weight.address(), 0}};
  const std::vector<int32_t> tensor_of_chunk(kChunks, 0);
  unsigned finished_blocks = 0;
  uint8_t flags = 0;
  LaunchArgs<kWords> args{};
  args.header.tables.tensors = tensors.data();
  args.header.tables.addresses = addresses.data();
  args.header.tables.tensor_of_chunk = tensor_of_chunk.data();
  args.header.tables.finished_blocks = &finished_blocks;
  args.header.tables.flags = &flags;
  args.header.launch = {0, 1, kChunks - 2, kChunks, 0, {}};
  args.words[0] = grad.address();
  const GroupWords group{{1.0, 0, 0, 0, false, false}, nullptr};
  std::memcpy(&args.words[1], &group, sizeof group);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2);
  config.blockDim = dim3(kThreads);
  cudaLaunchKernelEx(&config, step_kernel<kWords>, args);

  for (int64_t i = begin - 5; i < kElements; ++i) {
    const float want = i < begin ? 1.0f : i % 2 == 0 ? 0.5f : 0.75f;
    const float got = __bfloat162float(weight[i]);
    CHECK(got == want, "weight %lld: got %g, want %g", static_cast<long long>(i), got, want);
  }
}

}  // namespace sasgd_test
