// layers/linear_kernel.h: y = W x over F32x16, for weights in tile order (layers/packed_matrix.h).
//
// The lanes are 16 outputs. A block of tiles x tokens sums in registers while k ascends, so a
// weight is loaded (and widened) once for several tokens and enough independent chains hide the
// latency of the fma. How y is cut into blocks changes no bit: every (t, n) has its own lane and
// its own chain.
#pragma once

#include "layers/kernels.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Sizes of a block: as many sums as fit into the registers beside the weights of one k. One token
// streams its weights from memory and takes more tiles, only to have chains enough.
inline constexpr int kBlockTiles = kVectorRegisters >= 32 ? 4 : 1;
inline constexpr int kBlockTokens = kVectorRegisters >= 8 ? 6 : 1;
inline constexpr int kOneTokenTiles = kVectorRegisters >= 32 ? 8 : 4;
inline constexpr int kMaxTreeDepth = 5;  // with 16 leaves

struct Fp8 {
  uint8_t code;
};

template <class T>
inline constexpr bool kHasScales = false;
template <>
inline constexpr bool kHasScales<Fp8> = true;

inline F32x16 load_weights(const float* w, F32x16) { return load(w); }
inline F32x16 load_weights(const Bf16* w, F32x16) { return load(w); }
inline F32x16 load_weights(const Fp8* w, F32x16 scale) { return mul(load_fp8(&w->code), scale); }

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

inline void store_output(const LinearArgs& args, int64_t tile, int64_t token, F32x16 sum) {
  if (args.round_to_bf16) sum = round_to_bf16(sum);
  const int64_t row = tile * 16;
  const int64_t n = args.rows - row < 16 ? args.rows - row : 16;
  store_first(args.y + token * args.y_stride + row, sum, n);
}

// The outputs of kTiles tiles for kTokens tokens. Sums are kept as [kTiles][kTokens].
template <class T, int kTiles, int kTokens>
class LinearBlock {
 public:
  LinearBlock(const LinearArgs& args, int64_t tile, int64_t token)
      : args_(args),
        tile_(tile),
        token_(token),
        tile_stride_(args.cols * 16),
        weights_(reinterpret_cast<const T*>(args.weights) + tile * tile_stride_),
        x_stride_(args.x_row_bytes / static_cast<int64_t>(sizeof(float))),
        x_(reinterpret_cast<const float*>(args.x) + token * x_stride_) {}

  void run() {
    LeafTree<kTiles * kTokens> tree;
    int64_t k = 0;
    for (int leaf = 0; leaf < args_.num_leaves; ++leaf) {
      add_leaf(k, args_.leaf_ends[leaf], tree.push_zero());
      tree.join(leaf);
      k = args_.leaf_ends[leaf];
    }
    const F32x16* sums = tree.finish();
    for (int i = 0; i < kTiles; ++i)
      for (int t = 0; t < kTokens; ++t)
        store_output(args_, tile_ + i, token_ + t, sums[i * kTokens + t]);
  }

 private:
  // The chains go on over the inputs [begin, end), which belong to one leaf.
  void add_leaf(int64_t begin, int64_t end, F32x16* sums) {
    F32x16 scales[kTiles] = {};
    if constexpr (!kHasScales<T>) return add_run(begin, end, scales, sums);
    while (begin < end) {
      const int64_t block = (args_.block_offset + begin) / args_.block_cols;
      const int64_t block_end = (block + 1) * args_.block_cols - args_.block_offset;
      const int64_t run_end = block_end < end ? block_end : end;
      if (load_scales(block, scales))
        add_run(begin, run_end, scales, sums);
      else
        add_run_of_any_scale(begin, run_end, block, sums);
      begin = run_end;
    }
  }

  void add_run(int64_t begin, int64_t end, const F32x16* scales, F32x16* sums) {
    F32x16 sum[kTiles][kTokens];
#pragma GCC unroll 8
    for (int i = 0; i < kTiles; ++i)
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sum[i][t] = sums[i * kTokens + t];

    const T* w = weights_ + begin * 16;
    for (int64_t k = begin; k < end; ++k, w += 16) {
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i) {
        const F32x16 weights = load_weights(w + i * tile_stride_, scales[i]);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t)
          sum[i][t] = fma(weights, F32x16::splat(x_[t * x_stride_ + k]), sum[i][t]);
      }
    }

#pragma GCC unroll 8
    for (int i = 0; i < kTiles; ++i)
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sums[i * kTokens + t] = sum[i][t];
  }

  const float* block_scales(int i, int64_t block) const {
    return args_.scales + ((tile_ + i) * args_.k_blocks + block) * 16;
  }

  // The scales for codes in units of kFp8Unit. False where one of them (from 256 on, infinite or
  // NaN) is not finite in that unit.
  bool load_scales(int64_t block, F32x16* scales) const {
    F32x16 zeros = F32x16::zero();
    for (int i = 0; i < kTiles; ++i) {
      scales[i] = mul(load(block_scales(i, block)), F32x16::splat(1.0f / kFp8Unit));
      zeros = fma(scales[i], F32x16::zero(), zeros);
    }
    return reduce_add(zeros) == 0;
  }

  // For scales that no sane checkpoint has: codes first become values, one more multiplication.
  void add_run_of_any_scale(int64_t begin, int64_t end, int64_t block, F32x16* sums) {
    for (int i = 0; i < kTiles; ++i) {
      const F32x16 scale = load(block_scales(i, block));
      const T* w = weights_ + i * tile_stride_;
      for (int64_t k = begin; k < end; ++k) {
        const F32x16 value = load_weights(w + k * 16, F32x16::splat(1.0f / kFp8Unit));
        const F32x16 weights = mul(value, scale);
        for (int t = 0; t < kTokens; ++t) {
          F32x16& sum = sums[i * kTokens + t];
          sum = fma(weights, F32x16::splat(x_[t * x_stride_ + k]), sum);
        }
      }
    }
  }

  const LinearArgs& args_;
  const int64_t tile_;
  const int64_t token_;
  const int64_t tile_stride_;
  const T* weights_;
  const int64_t x_stride_;
  const float* x_;
};

// A block of the last tokens, which may be fewer than kTokens.
template <class T, int kTiles, int kTokens>
void run_block(const LinearArgs& args, int64_t tile, int64_t token) {
  if constexpr (kTokens > 1) {
    if (args.tokens - token < kTokens) return run_block<T, kTiles, kTokens - 1>(args, tile, token);
  }
  LinearBlock<T, kTiles, kTokens>(args, tile, token).run();
}

// All tokens through the tiles from `tile` on, kTiles at a time: their weights come from memory for
// the first block of tokens, then from the cache. Returns the first tile left over.
template <class T, int kTiles, int kTokens>
int64_t run_tiles(const LinearArgs& args, int64_t tile) {
  const int64_t tiles = (args.rows + 15) / 16;
  for (; tile + kTiles <= tiles; tile += kTiles)
    for (int64_t token = 0; token < args.tokens; token += kTokens)
      run_block<T, kTiles, kTokens>(args, tile, token);
  return tile;
}

template <class T>
void linear(const LinearArgs& args) {
  int64_t tile = 0;
  if (args.tokens == 1) tile = run_tiles<T, kOneTokenTiles, 1>(args, tile);
  tile = run_tiles<T, kBlockTiles, kBlockTokens>(args, tile);
  run_tiles<T, 1, kBlockTokens>(args, tile);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
