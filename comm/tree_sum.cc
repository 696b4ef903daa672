#include "comm/tree_sum.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace troupe::comm {
namespace {

// A block of partial sums per level of the tree stays in the first-level cache.
constexpr size_t kBlock = 512;

float load(float x) { return x; }
float load(Bf16 x) { return to_float(x); }
void store(float x, float& out) { out = x; }
void store(float x, Bf16& out) { out = to_bf16(x); }

// Neighbouring pairs with the odd last one carried up is the same tree as splitting at the largest
// power of two below the count.
template <class T>
void sum_block(std::span<const std::byte* const> sources, size_t begin, size_t count, float* sum) {
  if (sources.size() == 1) {
    const T* source = reinterpret_cast<const T*>(sources[0]) + begin;
    for (size_t i = 0; i < count; ++i) sum[i] = load(source[i]);
    return;
  }
  const size_t half = std::bit_ceil(sources.size()) / 2;
  float right[kBlock];
  sum_block<T>(sources.first(half), begin, count, sum);
  sum_block<T>(sources.subspan(half), begin, count, right);
  for (size_t i = 0; i < count; ++i) sum[i] += right[i];
}

template <class T>
void sum_all(std::span<const std::byte* const> sources, T* out, size_t count) {
  float sum[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t block = std::min(kBlock, count - begin);
    sum_block<T>(sources, begin, block, sum);
    for (size_t i = 0; i < block; ++i) store(sum[i], out[begin + i]);
  }
}

}  // namespace

void tree_sum(DataType type, std::span<const std::byte* const> sources, std::byte* out,
              size_t bytes) {
  if (type == DataType::kF32) {
    sum_all(sources, reinterpret_cast<float*>(out), bytes / sizeof(float));
  } else {
    TROUPE_CHECK(type == DataType::kBf16);
    sum_all(sources, reinterpret_cast<Bf16*>(out), bytes / sizeof(Bf16));
  }
}

}  // namespace troupe::comm
