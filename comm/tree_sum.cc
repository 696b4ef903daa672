#include "comm/tree_sum.h"

#include <vector>

#include "base/error.h"

#define TROUPE_TREE_SUM plain
#include "comm/tree_sum_kernel.h"

namespace troupe::comm {

#if defined(__x86_64__)
namespace avx2 {
void sum_f32(std::span<const std::byte* const> sources, std::byte* out, size_t count);
void sum_bf16(std::span<const std::byte* const> sources, std::byte* out, size_t count);
void sum_int8(std::span<const std::byte* const> sources, std::byte* out, size_t count);
}  // namespace avx2
namespace avx512 {
void sum_f32(std::span<const std::byte* const> sources, std::byte* out, size_t count);
void sum_bf16(std::span<const std::byte* const> sources, std::byte* out, size_t count);
void sum_int8(std::span<const std::byte* const> sources, std::byte* out, size_t count);
}  // namespace avx512
#endif

namespace {

// The builtins ask the operating system too (XGETBV): registers it does not save do not count.
std::vector<TreeSumKernel> detect_kernels() {
  std::vector<TreeSumKernel> kernels{{"plain", plain::sum_f32, plain::sum_bf16, plain::sum_int8}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2"))
    kernels.push_back({"avx2", avx2::sum_f32, avx2::sum_bf16, avx2::sum_int8});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    kernels.push_back({"avx512", avx512::sum_f32, avx512::sum_bf16, avx512::sum_int8});
#endif
  return kernels;
}

}  // namespace

std::span<const TreeSumKernel> tree_sum_kernels() {
  static const std::vector<TreeSumKernel> kernels = detect_kernels();
  return kernels;
}

void tree_sum(DataType type, std::span<const std::byte* const> sources, std::byte* out,
              size_t bytes) {
  static const TreeSumKernel kernel = tree_sum_kernels().back();
  switch (type) {
    case DataType::kF32:
      return kernel.sum_f32(sources, out, bytes / sizeof(float));
    case DataType::kBf16:
      return kernel.sum_bf16(sources, out, bytes / sizeof(Bf16));
    case DataType::kInt8:
      return kernel.sum_int8(sources, out, bytes);
    case DataType::kBytes:
      break;
  }
  TROUPE_CHECK(false, "a sum of bytes");
}

}  // namespace troupe::comm
