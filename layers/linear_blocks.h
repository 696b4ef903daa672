// layers/linear_blocks.h: what the kernels of products share: how a product is cut into blocks of
// tiles by tokens, the sums over leaves, and the outputs' rounding.
//
// Sums of a block are kept as [tiles][tokens]. How y is cut into blocks changes no bit: every
// (token, output) has a lane and a chain of its own.
#pragma once

#include "layers/kernels.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

inline constexpr int kMaxTreeDepth = 5;  // with 16 leaves

// Sums leaves by pairs, in order, like a binary counter: after leaf i one partial sum is left for
// every bit set in i + 1.
template <int kWidth>
struct LeafTree {
  F32x16 partial[kMaxTreeDepth][kWidth];
  int depth = 0;

  // The sums of the next leaf, at zero: to be added to, then joined, counting leaves from 0.
  F32x16* push_zero() {
    for (int i = 0; i < kWidth; ++i) partial[depth][i] = F32x16::zero();
    return partial[depth++];
  }
  void join(int leaf) {
    for (; leaf & 1; leaf >>= 1) join_top();
  }

  // Or at once, without a pass over memory for each level: with
  //   into = place_of(leaf), n = joins(leaf)
  // put(into, n, i, its sum i) for every i, then take(leaf).
  int joins(int leaf) const { return __builtin_ctz(~static_cast<unsigned>(leaf)); }
  F32x16* place_of(int leaf) { return partial[depth - joins(leaf)]; }
  static void put(F32x16* into, int joins, int i, F32x16 sum) {
    for (int level = joins - 1; level >= 0; --level) sum = add(into[level * kWidth + i], sum);
    into[i] = sum;
  }
  void take(int leaf) { depth += 1 - joins(leaf); }

  const F32x16* finish() {
    while (depth > 1) join_top();
    return partial[0];
  }
  void join_top() {
    --depth;
    for (int i = 0; i < kWidth; ++i)
      partial[depth - 1][i] = add(partial[depth - 1][i], partial[depth][i]);
  }
};

template <class Args>
void store_output(const Args& args, int64_t tile, int64_t token, F32x16 sum) {
  if (args.round_to_bf16) sum = round_to_bf16(sum);
  const int64_t row = tile * 16;
  const int64_t n = args.rows - row < 16 ? args.rows - row : 16;
  store_first(args.y + token * args.y_stride + row, sum, n);
}

template <class Args>
void store_outputs(const Args& args, int64_t tile, int64_t token, int tiles, int tokens,
                   const F32x16* sums) {
  for (int i = 0; i < tiles; ++i)
    for (int t = 0; t < tokens; ++t) store_output(args, tile + i, token + t, sums[i * tokens + t]);
}

template <int kTilesOf, int kTokensOf>
struct BlockShape {
  static constexpr int kTiles = kTilesOf, kTokens = kTokensOf;
};

// Where a block lies: its first tile and token, and which of the `count` blocks of these tiles.
struct BlockPlace {
  int64_t tile, token, index, count;
};

template <int kTiles, int kTokens, class Run>
void run_block(const BlockPlace& place, int64_t tokens, const Run& run) {
  if constexpr (kTokens > 1) {
    if (tokens < kTokens) return run_block<kTiles, kTokens - 1>(place, tokens, run);
  }
  run(BlockShape<kTiles, kTokens>{}, place);
}

// run(BlockShape<kTiles, n>, place) for all tokens through the tiles from `tile` on, kTiles at a
// time: n is at most kTokens, and the blocks are the fewest and as equal as can be, as a small one
// would load (and unpack) the weights for few tokens. Returns the first tile left over.
template <int kTiles, int kTokens, class Args, class Run>
int64_t run_blocks(const Args& args, int64_t tile, const Run& run) {
  const int64_t tiles = (args.rows + 15) / 16;
  const int64_t count = (args.tokens + kTokens - 1) / kTokens;
  for (; tile + kTiles <= tiles; tile += kTiles) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = i * args.tokens / count;
      const int64_t tokens = (i + 1) * args.tokens / count - token;
      run_block<kTiles, kTokens>({tile, token, i, count}, tokens, run);
    }
  }
  return tile;
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
