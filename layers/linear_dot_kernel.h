// layers/linear_dot_kernel.h: y = W x by vdpbf16ps, for bf16 and fp8 weights in tile order
// (layers/linear_dot.h says what is computed). Needs AVX512_BF16 and AVX512_VBMI.
//
// The lanes are 16 outputs, as in linear_kernel.h; an instruction takes two inputs of each. The
// matrix lies by inputs, [k][16 rows], so a pair of lines is brought into pairs of inputs when it
// is loaded: one permutation for all the tokens of a block.
#pragma once

#include "layers/linear_kernel.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Sizes of a block. Two instructions a cycle with a latency of six want a dozen sums or more; many
// tokens by few tiles draws the least from memory and L2 for each of them. Few tokens wait for
// memory anyhow.
inline constexpr int kDotTiles = 2;
inline constexpr int kDotTokens = 12;
inline constexpr int kFewTokens = 6;
inline constexpr int kFewTokensTiles = 4;

using Pairs = __m512bh;  // [16 rows][2 inputs]

inline Pairs as_pairs(__m512i bits) { return reinterpret_cast<Pairs>(bits); }

// 32 bf16 [2 inputs][16 rows], of which the first `inputs` exist; the others read as 0.
inline Pairs load_pairs(const Bf16* w, int64_t inputs) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __mmask32 mask = inputs >= 2 ? 0xffffffffu : 0xffffu;
  return as_pairs(
      _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), _mm512_maskz_loadu_epi16(mask, w)));
}

// The bf16 of every e4m3fn code without its sign, low and high byte apart. Code 0x7f, NaN, reads
// as 480: its scale is NaN (pack_rows).
struct Fp8Table {
  uint8_t low[128], high[128];
};

constexpr Fp8Table make_fp8_table() {
  Fp8Table table{};
  for (int code = 0; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7;
    int bits = 0;
    if (exponent > 0) {
      bits = (exponent + 120) << 7 | mantissa << 4;
    } else if (mantissa > 0) {  // subnormal: m 2^-9
      for (exponent = 121; (mantissa & 8) == 0; --exponent) mantissa <<= 1;
      bits = exponent << 7 | (mantissa & 7) << 4;
    }
    table.low[code] = static_cast<uint8_t>(bits & 0xff);
    table.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}

alignas(64) inline constexpr Fp8Table kFp8Table = make_fp8_table();

struct FourInputs {
  Pairs first, second;
};

// 64 codes [4 inputs][16 rows], of which the first `inputs` exist; the others read as 0.
inline FourInputs load_four(const Fp8* w, int64_t inputs) {
  // Within each 16 bytes: 4 rows x inputs 0 and 1, then the same rows x inputs 2 and 3.
  alignas(64) static constexpr uint8_t kOrder[64] = {
      0,  16, 1,  17, 2,  18, 3,  19, 32, 48, 33, 49, 34, 50, 35, 51, 4,  20, 5,  21, 6,  22,
      7,  23, 36, 52, 37, 53, 38, 54, 39, 55, 8,  24, 9,  25, 10, 26, 11, 27, 40, 56, 41, 57,
      42, 58, 43, 59, 12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63};
  const __mmask64 mask = inputs >= 4 ? ~uint64_t{0} : (uint64_t{1} << (16 * inputs)) - 1;
  const __m512i codes =
      _mm512_permutexvar_epi8(_mm512_load_si512(kOrder), _mm512_maskz_loadu_epi8(mask, w));
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Table.low), codes,
                                               _mm512_load_si512(kFp8Table.low + 64));
  const __m512i magnitude = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Table.high), codes,
                                                     _mm512_load_si512(kFp8Table.high + 64));
  // magnitude | (codes & 0x80)
  const __m512i high =
      _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
  return {as_pairs(_mm512_unpacklo_epi8(low, high)), as_pairs(_mm512_unpackhi_epi8(low, high))};
}

// Two inputs of a token for all lanes; of one input, the other is 0.
inline Pairs broadcast_pair(const Bf16* x, int64_t inputs) {
  uint32_t pair = x->bits;
  if (inputs >= 2) __builtin_memcpy(&pair, x, sizeof pair);
  return as_pairs(_mm512_set1_epi32(static_cast<int>(pair)));
}

// The outputs of kTiles tiles for kTokens tokens.
template <class T, int kTiles, int kTokens>
class DotBlock {
 public:
  // ahead: elements to what the block fetches into L2 while it runs; 0 for nothing.
  DotBlock(const LinearArgs& args, int64_t tile, int64_t token, int64_t ahead)
      : args_(args),
        tile_(tile),
        token_(token),
        ahead_(ahead),
        tile_stride_(args.cols * 16),
        weights_(reinterpret_cast<const T*>(args.weights) + tile * tile_stride_),
        x_(args.x + token * args.x_row_bytes) {}

  void run() {
    LeafTree<kTiles * kTokens> tree;
    int64_t k = 0;
    for (int leaf = 0; leaf < args_.num_leaves; ++leaf) {
      add_leaf(k, args_.leaf_ends[leaf], tree.push_zero());
      tree.join(leaf);
      k = args_.leaf_ends[leaf];
    }
    store_outputs(args_, tile_, token_, kTiles, kTokens, tree.finish());
  }

 private:
  struct Sums {
    __m512 of[kTiles][kTokens];
  };

  void add_leaf(int64_t begin, int64_t end, F32x16* sums) const {
    if constexpr (!kHasScales<T>) {
      const Sums chains = chain(begin, end);
      for_each([&](int i, int t) { sums[i * kTokens + t].v = chains.of[i][t]; });
    } else {
      for (int64_t next; begin < end; begin = next) {
        const int64_t block = (args_.block_offset + begin) / args_.block_cols;
        next = (block + 1) * args_.block_cols - args_.block_offset;
        if (next > end) next = end;
        const Sums chains = chain(begin, next);
        for_each([&](int i, int t) {
          const F32x16 scale = load(args_.scales + ((tile_ + i) * args_.k_blocks + block) * 16);
          sums[i * kTokens + t] = fma({chains.of[i][t]}, scale, sums[i * kTokens + t]);
        });
      }
    }
  }

  // Chains over the inputs [begin, end), from zero.
  Sums chain(int64_t begin, int64_t end) const {
    constexpr int kStep = kHasScales<T> ? 4 : 2;
    Sums sums;
    for_each([&](int i, int t) { sums.of[i][t] = _mm512_setzero_ps(); });
    int64_t k = begin;
    for (; k + kStep <= end; k += kStep) step(k, kStep, sums);
    if (k < end) step(k, end - k, sums);
    return sums;
  }

  __attribute__((always_inline)) void step(int64_t k, int64_t inputs, Sums& sums) const {
    const T* w = weights_ + k * 16;
    if constexpr (kHasScales<T>) {
      FourInputs four[kTiles];
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i) four[i] = load_four(fetch(w, i), inputs);
      multiply(
          k, inputs, [&](int i) { return four[i].first; }, sums);
      if (inputs > 2)
        multiply(
            k + 2, inputs - 2, [&](int i) { return four[i].second; }, sums);
    } else {
      Pairs pairs[kTiles];
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i) pairs[i] = load_pairs(fetch(w, i), inputs);
      multiply(
          k, inputs, [&](int i) { return pairs[i]; }, sums);
    }
  }

  __attribute__((always_inline)) const T* fetch(const T* w, int i) const {
    const T* line = w + i * tile_stride_;
    _mm_prefetch(reinterpret_cast<const char*>(line + ahead_), _MM_HINT_T1);
    return line;
  }

  template <class Weights>
  __attribute__((always_inline)) void multiply(int64_t k, int64_t inputs, const Weights& weights,
                                               Sums& sums) const {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const auto* x = reinterpret_cast<const Bf16*>(x_ + t * args_.x_row_bytes);
      const Pairs pair = broadcast_pair(x + k, inputs);
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i)
        sums.of[i][t] = _mm512_dpbf16_ps(sums.of[i][t], weights(i), pair);
    }
  }

  template <class Body>
  __attribute__((always_inline)) static void for_each(const Body& body) {
#pragma GCC unroll 8
    for (int i = 0; i < kTiles; ++i)
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) body(i, t);
  }

  const LinearArgs& args_;
  const int64_t tile_;
  const int64_t token_;
  const int64_t ahead_;
  const int64_t tile_stride_;
  const T* weights_;
  const std::byte* x_;
};

// How far ahead of what it multiplies a block fetches, in elements. The first block of tokens reads
// its tiles from memory: the hardware alone keeps up with one token of bf16, but not where more is
// done between two lines. While the second one runs, the next tiles are fetched for the first.
template <class T>
int64_t fetch_ahead(const LinearArgs& args, const BlockPlace& place, int tiles) {
  if (place.index == 1) return tiles * args.cols * 16;
  if (place.index > 1) return 0;
  const int64_t bytes = args.tokens > 1 ? 4096 : kHasScales<T> ? 1024 : 0;
  return bytes / static_cast<int64_t>(sizeof(T));
}

template <class T>
void linear_dot(const LinearArgs& args) {
  const auto run = [&]<class Shape>(Shape, const BlockPlace& place) {
    DotBlock<T, Shape::kTiles, Shape::kTokens>(args, place.tile, place.token,
                                               fetch_ahead<T>(args, place, Shape::kTiles))
        .run();
  };
  int64_t tile = 0;
  if (args.tokens == 1) {
    tile = run_blocks<kOneTokenTiles, 1>(args, tile, run);
  } else if (args.tokens <= kFewTokens) {
    tile = run_blocks<kFewTokensTiles, kFewTokens>(args, tile, run);
  }
  tile = run_blocks<kDotTiles, kDotTokens>(args, tile, run);
  run_blocks<1, kDotTokens>(args, tile, run);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
