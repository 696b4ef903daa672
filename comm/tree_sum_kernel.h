// comm/tree_sum_kernel.h: tree_sum, compiled once per instruction set (tree_sum*.cc), in a
// namespace named by TROUPE_TREE_SUM. Plain loops: every path adds the same numbers in the same
// order, one addition at a time, so all give the same bits.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bf16.h"

namespace troupe::comm::TROUPE_TREE_SUM {
namespace {

// Partial sums of more than kLeaves sources; a block stays in the first-level cache.
constexpr size_t kBlock = 512;
// This many sources are added in registers; a power of two, so that it is a subtree.
constexpr size_t kLeaves = 8;

inline float load(float x) { return x; }
inline float load(Bf16 x) { return to_float(x); }
inline int32_t load(int8_t x) { return x; }
// What sums of T are kept in.
template <class T>
using Sum = decltype(load(T{}));

inline void store(float x, float& out) { out = x; }
inline void store(int32_t x, int32_t& out) { out = x; }
inline void store(int32_t x, int8_t& out) {
  out = static_cast<int8_t>(std::min(std::max(x, -128), 127));
}
// As to_bf16, without a branch, so that the loop around it becomes vector code.
inline void store(float x, Bf16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// Neighbouring pairs with the odd last one carried up is the same tree as splitting at the largest
// power of two below the count.
template <size_t kCount, class T>
inline Sum<T> tree(const T* const* sources, size_t i) {
  if constexpr (kCount == 1) {
    return load(sources[0][i]);
  } else {
    constexpr size_t kHalf = std::bit_ceil(kCount) / 2;
    return tree<kHalf>(sources, i) + tree<kCount - kHalf>(sources + kHalf, i);
  }
}

// `out` may be one of the sources: element i is read before it is written, and by nobody else.
template <size_t kCount, class T, class Out>
void sum_leaves(const T* const* all, size_t begin, size_t count, Out* out) {
  const T* sources[kCount];
  for (size_t s = 0; s < kCount; ++s) sources[s] = all[s] + begin;
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) store(tree<kCount>(sources, i), out[i]);
}

template <class T, class Out>
void sum_few(const T* const* sources, size_t num_sources, size_t begin, size_t count, Out* out) {
  switch (num_sources) {
    case 1:
      return sum_leaves<1>(sources, begin, count, out);
    case 2:
      return sum_leaves<2>(sources, begin, count, out);
    case 3:
      return sum_leaves<3>(sources, begin, count, out);
    case 4:
      return sum_leaves<4>(sources, begin, count, out);
    case 5:
      return sum_leaves<5>(sources, begin, count, out);
    case 6:
      return sum_leaves<6>(sources, begin, count, out);
    case 7:
      return sum_leaves<7>(sources, begin, count, out);
    default:
      return sum_leaves<kLeaves>(sources, begin, count, out);
  }
}

template <class T>
void sum_block(const T* const* sources, size_t num_sources, size_t begin, size_t count,
               Sum<T>* sum) {
  if (num_sources <= kLeaves) return sum_few(sources, num_sources, begin, count, sum);
  const size_t half = std::bit_ceil(num_sources) / 2;
  Sum<T> right[kBlock];
  sum_block(sources, half, begin, count, sum);
  sum_block(sources + half, num_sources - half, begin, count, right);
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) sum[i] += right[i];
}

template <class T>
void sum_all(const T* const* sources, size_t num_sources, T* out, size_t count) {
  if (num_sources <= kLeaves) return sum_few(sources, num_sources, 0, count, out);
  Sum<T> sum[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t block = std::min(kBlock, count - begin);
    sum_block(sources, num_sources, begin, block, sum);
#pragma GCC ivdep
    for (size_t i = 0; i < block; ++i) store(sum[i], out[begin + i]);
  }
}

}  // namespace

void sum_f32(std::span<const std::byte* const> sources, std::byte* out, size_t count) {
  sum_all(reinterpret_cast<const float* const*>(sources.data()), sources.size(),
          reinterpret_cast<float*>(out), count);
}

void sum_bf16(std::span<const std::byte* const> sources, std::byte* out, size_t count) {
  sum_all(reinterpret_cast<const Bf16* const*>(sources.data()), sources.size(),
          reinterpret_cast<Bf16*>(out), count);
}

void sum_int8(std::span<const std::byte* const> sources, std::byte* out, size_t count) {
  sum_all(reinterpret_cast<const int8_t* const*>(sources.data()), sources.size(),
          reinterpret_cast<int8_t*>(out), count);
}

}  // namespace troupe::comm::TROUPE_TREE_SUM
