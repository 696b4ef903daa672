// layers/linear_quantized_kernel.h: y = W x for 4- and 8-bit weights and 8-bit rows
// (layers/quantize.h).
//
// The lanes are 16 outputs; four inputs of each are multiplied and summed by one instruction where
// there is one (vpdpbusd; AMX's tdpbusd takes the same operands). Codes of weights are unsigned:
// what their offset adds to a segment is the same for every output, and is where the sum begins.
// How y is cut into blocks changes no bit.
#pragma once

#include "layers/kernels.h"
#include "layers/simd_int8.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Sizes of a block: sums, the weights and a row's inputs fit into the registers. Up to kBlockTokens
// tokens stream their weights from memory: one tile after the other is one stream, fetched ahead.
inline constexpr int kQuantBlockTiles = kVectorRegisters >= 32 ? 2 : 1;
inline constexpr int kQuantBlockTokens = kVectorRegisters >= 32 ? 8 : kVectorRegisters >= 8 ? 4 : 1;
inline constexpr int64_t kPrefetchBytes = 2048;
inline constexpr int kQuantTreeDepth = 5;  // with 16 leaves

// 8 inputs of a tile, two times [16 outputs][4 inputs].
struct Chunk {
  I32x16 first, second;
};

struct Int8Weights {
  static constexpr int kGroup = 0;  // inputs of a whole segment, where segments are groups
  static constexpr int kChunkBytes = 128;
  static constexpr int kScaleBytes = 0;  // from one segment to the next: a row has one scale

  static Chunk load_chunk(const uint8_t* p) { return {load_codes(p), load_codes(p + 64)}; }
  static F32x16 load_scales(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};

struct Int4Weights {
  static constexpr int kGroup = 32;
  static constexpr int kChunkBytes = 64;
  static constexpr int kScaleBytes = 32;

  static Chunk load_chunk(const uint8_t* p) {
    const I32x16 codes = load_codes(p);
    return {low_nibbles(codes), high_nibbles(codes)};
  }
  static F32x16 load_scales(const uint8_t* p) { return load(reinterpret_cast<const Bf16*>(p)); }
};

// e2m1 codes s ee m: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; doubled to be whole, plus 12.
struct Mxfp4Weights {
  static constexpr int kGroup = 32;
  static constexpr int kChunkBytes = 64;
  static constexpr int kScaleBytes = 16;
  static constexpr uint8_t kValues[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                          12, 11, 10, 9,  8,  6,  4,  0};

  static Chunk load_chunk(const uint8_t* p) {
    const I32x16 codes = load_codes(p);
    return {lookup(kValues, low_nibbles(codes)), lookup(kValues, high_nibbles(codes))};
  }
  static F32x16 load_scales(const uint8_t* p) {
    return mul(load_exponents(p), F32x16::splat(0.5f));
  }
};

// The outputs of kTiles tiles for kTokens tokens. Sums are kept as [kTiles][kTokens].
template <class Weights, int kTiles, int kTokens>
class QuantizedBlock {
 public:
  QuantizedBlock(const QuantizedLinearArgs& args, int64_t tile, int64_t token)
      : args_(args),
        tile_(tile),
        token_(token),
        scales_(args.tiles + tile * args.tile_bytes),
        codes_(scales_ + args.tile_codes_at),
        x_(args.x + token * args.row_bytes),
        x_scales_(reinterpret_cast<const float*>(x_ + args.row_scales_at)),
        x_offsets_(reinterpret_cast<const int32_t*>(x_ + args.row_offsets_at)),
        group_end_(args.group_cols - args.group_offset) {}

  void run() {
    for (int leaf = 0; leaf < args_.num_leaves; ++leaf) add_leaf(leaf);
    while (depth_ > 1) join_top();
    for (int i = 0; i < kTiles; ++i)
      for (int t = 0; t < kTokens; ++t) store_sum(i, t, partial_[0][i * kTokens + t]);
  }

 private:
  static constexpr int kSums = kTiles * kTokens;
  // Two chains for each of few sums: an instruction takes several times as long as the next waits.
  static constexpr int kChains = kTiles == 1 ? 2 : 1;
  static constexpr bool kPrefetch = kTiles == 1;

  // Leaves are summed by pairs, in order, like a binary counter: after leaf i one partial sum is
  // left for every bit set in i + 1.
  void add_leaf(int leaf) {
    // In registers, unless the dot products need those.
    F32x16 few_sums[kSums];
    F32x16* const sums = kTiles == 1 ? few_sums : partial_[depth_];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = F32x16::zero();
    for (const int64_t leaf_end = args_.leaf_ends[leaf]; k_ < leaf_end;) {
      const int64_t end = group_end_ < leaf_end ? group_end_ : leaf_end;
      add_segment(padded_size(end - k_), sums);
      if (end == group_end_) group_end_ += args_.group_cols;
      k_ = end;
    }
    const bool is_right = (leaf & 1) != 0;
    F32x16* partial = partial_[is_right ? depth_ - 1 : depth_++];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) partial[i] = is_right ? add(partial[i], sums[i]) : sums[i];
    for (int i = leaf >> 1; is_right && (i & 1) != 0; i >>= 1) join_top();
  }

  void join_top() {
    --depth_;
    for (int i = 0; i < kSums; ++i)
      partial_[depth_ - 1][i] = add(partial_[depth_ - 1][i], partial_[depth_][i]);
  }

  // The next segment, `cols` padded inputs wide.
  [[gnu::always_inline]] inline void add_segment(int64_t cols, F32x16* sums) {
    I32x16 dot[kTiles][kTokens][kChains];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const I32x16 offset = I32x16::splat(of_token(x_offsets_, t)[0]);
#pragma GCC unroll 16
      for (int i = 0; i < kTiles; ++i) {
        dot[i][t][kChains - 1] = I32x16::splat(0);
        dot[i][t][0] = offset;
      }
    }
    // Whole groups without a loop: its end would be mispredicted as often as not.
    constexpr int64_t kChunks = Weights::kGroup / kSegmentPad;
    if (kChunks > 0 && cols == Weights::kGroup) {
#pragma GCC unroll 16
      for (int64_t c = 0; c < kChunks; ++c)
        add_chunk(codes_ + c * Weights::kChunkBytes, x_ + c * kSegmentPad, dot);
    } else {
      for (int64_t c = 0; c < cols / kSegmentPad; ++c)
        add_chunk(codes_ + c * Weights::kChunkBytes, x_ + c * kSegmentPad, dot);
    }
    codes_ += cols / kSegmentPad * Weights::kChunkBytes;
    x_ += cols;

#pragma GCC unroll 16
    for (int i = 0; i < kTiles; ++i) {
      const F32x16 scales = Weights::load_scales(scales_ + i * args_.tile_bytes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        F32x16& sum = sums[i * kTokens + t];
        const F32x16 scale = mul(scales, F32x16::splat(of_token(x_scales_, t)[0]));
        I32x16 total = dot[i][t][0];
        if constexpr (kChains == 2) total = add(total, dot[i][t][1]);
        sum = fma(to_float(total), scale, sum);
      }
    }
    scales_ += Weights::kScaleBytes;
    ++x_scales_;
    ++x_offsets_;
  }

  // Weights stay in registers for all tokens, a token's inputs for all tiles.
  [[gnu::always_inline]] inline void add_chunk(const uint8_t* codes, const int8_t* x,
                                               I32x16 (&dot)[kTiles][kTokens][kChains]) const {
    Chunk chunk[kTiles];
#pragma GCC unroll 16
    for (int i = 0; i < kTiles; ++i) {
      const uint8_t* p = codes + i * args_.tile_bytes;
      if constexpr (kPrefetch) {
        __builtin_prefetch(p + kPrefetchBytes);
        if constexpr (Weights::kChunkBytes > 64) __builtin_prefetch(p + kPrefetchBytes + 64);
      }
      chunk[i] = Weights::load_chunk(p);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const I32x16 first = splat4(of_token(x, t)), second = splat4(of_token(x, t) + 4);
#pragma GCC unroll 16
      for (int i = 0; i < kTiles; ++i) dot[i][t][0] = dot4(dot[i][t][0], chunk[i].first, first);
#pragma GCC unroll 16
      for (int i = 0; i < kTiles; ++i) {
        I32x16& sum = dot[i][t][kChains - 1];
        sum = dot4(sum, chunk[i].second, second);
      }
    }
  }

  // p: into the first token's row.
  template <class T>
  const T* of_token(const T* p, int t) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const int8_t*>(p) + t * args_.row_bytes);
  }

  void store_sum(int i, int t, F32x16 sum) {
    if (args_.round_to_bf16) sum = round_to_bf16(sum);
    const int64_t row = (tile_ + i) * 16;
    const int64_t n = args_.rows - row < 16 ? args_.rows - row : 16;
    store_first(args_.y + (token_ + t) * args_.y_stride + row, sum, n);
  }

  const QuantizedLinearArgs& args_;
  const int64_t tile_;
  const int64_t token_;
  // Of the next segment: of the first tile, of the first token's row.
  const uint8_t* scales_;
  const uint8_t* codes_;
  const int8_t* x_;
  const float* x_scales_;
  const int32_t* x_offsets_;
  int64_t k_ = 0, group_end_;
  F32x16 partial_[kQuantTreeDepth][kSums];
  int depth_ = 0;
};

// A block of `tokens` tokens, at most kTokens.
template <class Weights, int kTiles, int kTokens>
void run_quantized_block(const QuantizedLinearArgs& args, int64_t tile, int64_t token,
                         int64_t tokens) {
  if constexpr (kTokens > 1) {
    if (tokens < kTokens)
      return run_quantized_block<Weights, kTiles, kTokens - 1>(args, tile, token, tokens);
  }
  QuantizedBlock<Weights, kTiles, kTokens>(args, tile, token).run();
}

// All tokens through the tiles from `tile` on, in the fewest blocks and those as equal as can be: a
// block of one token would unpack the weights for it alone. Returns the first tile left over.
template <class Weights, int kTiles>
int64_t run_quantized_tiles(const QuantizedLinearArgs& args, int64_t tile) {
  const int64_t tiles = (args.rows + 15) / 16;
  const int64_t blocks = (args.tokens + kQuantBlockTokens - 1) / kQuantBlockTokens;
  for (; tile + kTiles <= tiles; tile += kTiles) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t token = block * args.tokens / blocks;
      const int64_t end = (block + 1) * args.tokens / blocks;
      run_quantized_block<Weights, kTiles, kQuantBlockTokens>(args, tile, token, end - token);
    }
  }
  return tile;
}

template <class Weights>
void linear_quantized(const QuantizedLinearArgs& args) {
  int64_t tile = 0;
  if (args.tokens > kQuantBlockTokens)
    tile = run_quantized_tiles<Weights, kQuantBlockTiles>(args, tile);
  run_quantized_tiles<Weights, 1>(args, tile);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
