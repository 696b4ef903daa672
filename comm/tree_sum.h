// comm/tree_sum.h: the one order in which ranks' numbers are added.
#pragma once

#include <cstddef>
#include <span>

#include "comm/process_group.h"

namespace troupe::comm {

// out[i] = sum over r of sources[r][i], for `bytes` bytes of `type`, by the binary tree of
// neighbouring pairs ((0+1)+(2+3))+..., an odd last one carried up. kF32 and kBf16: in fp32, a bf16
// result rounded once. kInt8: exactly, in 32 bits, the result cut to [-128, 127] once. Each i
// stands alone: cutting the range anywhere changes no bit. `out` may be one of the sources. Runs on
// the widest vectors of this machine; all widths give the same bits.
void tree_sum(DataType type, std::span<const std::byte* const> sources, std::byte* out,
              size_t bytes);

// The same on one instruction set. For tests and the choice above.
struct TreeSumKernel {
  const char* name;  // "plain", "avx2", "avx512"
  void (*sum_f32)(std::span<const std::byte* const> sources, std::byte* out, size_t count);
  void (*sum_bf16)(std::span<const std::byte* const> sources, std::byte* out, size_t count);
  void (*sum_int8)(std::span<const std::byte* const> sources, std::byte* out, size_t count);
};
// Those this machine can run, slowest first.
std::span<const TreeSumKernel> tree_sum_kernels();

}  // namespace troupe::comm
