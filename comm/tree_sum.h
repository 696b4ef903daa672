// comm/tree_sum.h: the one order in which ranks' numbers are added.
#pragma once

#include <cstddef>
#include <span>

#include "comm/process_group.h"

namespace troupe::comm {

// out[i] = sum over r of sources[r][i], for `bytes` bytes of `type` (kF32 or kBf16), by the binary
// tree of neighbouring pairs ((0+1)+(2+3))+..., an odd last one carried up; in fp32, a bf16 result
// rounded once. Each i stands alone: cutting the range anywhere changes no bit. `out` may be one of
// the sources.
void tree_sum(DataType type, std::span<const std::byte* const> sources, std::byte* out,
              size_t bytes);

}  // namespace troupe::comm
