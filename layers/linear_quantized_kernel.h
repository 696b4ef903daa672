// layers/linear_quantized_kernel.h: y = W x for 4- and 8-bit weights and 8-bit rows
// (layers/quantize.h).
//
// The lanes are 16 outputs; four inputs of each are multiplied and summed by one instruction where
// there is one (vpdpbusd; AMX's tdpbusd takes the same operands). Codes of weights are unsigned:
// what their offset adds to a segment is the same for every output, and is where the sum begins.
#pragma once

#include "layers/linear_blocks.h"
#include "layers/simd_int8.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Few tokens stream their weights from memory: one tile after the other is one stream, fetched
// ahead. More go through two tiles in blocks of Weights::kBlockTokens, so that sums, weights and a
// row's inputs fit into the registers.
inline constexpr int kPairedTiles = kVectorRegisters >= 32 ? 2 : 1;
inline constexpr int kStreamTokens = kVectorRegisters >= 32 ? 8 : kVectorRegisters >= 8 ? 4 : 1;
inline constexpr int64_t kPrefetchBytes = 2048;

// 8 inputs of a tile, two times [16 outputs][4 inputs].
struct Chunk {
  I32x16 first, second;
};

struct Int8Weights {
  static constexpr int kGroup = 0;  // inputs of a whole segment, where segments are groups
  static constexpr int kBlockTokens = 12;
  static constexpr int kChunkBytes = 128;
  static constexpr int kScaleBytes = 0;  // from one segment to the next: a row has one scale

  static Chunk load_chunk(const uint8_t* p) { return {load_codes(p), load_codes(p + 64)}; }
  static F32x16 load_scales(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};

struct Int4Weights {
  static constexpr int kGroup = 32;
  static constexpr int kBlockTokens = 6;  // a leaf's sums stay in registers, too
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
  static constexpr int kBlockTokens = 6;  // a leaf's sums stay in registers, too
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

// What a block fetches into L2 while it runs: at each chunk the lines in [from, from + step), a
// part of the tiles that follow its own. step 0: nothing.
struct NextTiles {
  const uint8_t* from = nullptr;
  int64_t step = 0;  // at most four lines
};
inline constexpr int kIntoL2 = 2;  // of __builtin_prefetch

// The outputs of kTiles tiles for kTokens tokens. Sums are kept as [kTiles][kTokens].
template <class Weights, int kTiles, int kTokens>
class QuantizedBlock {
 public:
  QuantizedBlock(const QuantizedLinearArgs& args, int64_t tile, int64_t token, NextTiles next)
      : args_(args),
        tile_(tile),
        token_(token),
        scales_(args.tiles + tile * args.tile_bytes),
        codes_(scales_ + args.tile_codes_at),
        x_(args.x + token * args.row_bytes),
        x_scales_(reinterpret_cast<const float*>(x_ + args.row_scales_at)),
        x_offsets_(reinterpret_cast<const int32_t*>(x_ + args.row_offsets_at)),
        next_(next),
        group_end_(args.group_cols - args.group_offset) {}

  void run() {
    for (int t = 0; t < kTokens; ++t) fetch_output(token_ + t);
    for (int leaf = 0; leaf < args_.num_leaves; ++leaf) {
      if constexpr (kSumsInRegisters)
        add_leaf_of_groups(leaf);
      else
        add_leaf_of_one_segment(leaf);
    }
    store_outputs(args_, tile_, token_, kTiles, kTokens, tree_.finish());
  }

 private:
  static constexpr int kSums = kTiles * kTokens;
  static constexpr bool kStreams = kTiles == 1;
  static constexpr bool kSumsInRegisters = kStreams || Weights::kGroup > 0;
  static constexpr int kLinesAhead = kTiles * Weights::kChunkBytes / 64;  // at most, for a chunk
  // Two chains for each of few sums: an instruction takes several times as long as the next waits.
  static constexpr int kChains = kStreams ? 2 : 1;

  // Lines that are written from end to end would else be waited for, one after the other.
  void fetch_output(int64_t token) const {
    const float* y = args_.y + token * args_.y_stride + tile_ * 16;
    for (int i = 0; i < kTiles; ++i) __builtin_prefetch(y + i * 16, 1);
  }

  void add_leaf_of_groups(int leaf) {
    F32x16 sums[kSums];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = F32x16::zero();
    for (const int64_t leaf_end = args_.leaf_ends[leaf]; k_ < leaf_end;) {
      const int64_t end = group_end_ < leaf_end ? group_end_ : leaf_end;
      add_segment(padded_size(end - k_),
                  [&](int i, F32x16 dot, F32x16 scale) { sums[i] = fma(dot, scale, sums[i]); });
      if (end == group_end_) group_end_ += args_.group_cols;
      k_ = end;
    }
    F32x16* const into = tree_.place_of(leaf);
    const int joins = tree_.joins(leaf);
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) tree_.put(into, joins, i, sums[i]);
    tree_.take(leaf);
  }

  void add_leaf_of_one_segment(int leaf) {
    const int64_t end = args_.leaf_ends[leaf];
    if (k_ < end) {
      add_only_segment(padded_size(end - k_), tree_.place_of(leaf), tree_.joins(leaf));
    } else {
      for (int i = 0; i < kSums; ++i)
        tree_.put(tree_.place_of(leaf), tree_.joins(leaf), i, F32x16::zero());
    }
    tree_.take(leaf);
    k_ = end;
  }
  // A function of its own: g++ 12 spills sums where it has the loops around the dot products in
  // sight.
  [[gnu::noinline]] void add_only_segment(int64_t cols, F32x16* into, int joins) {
    add_segment(cols, [&](int i, F32x16 dot, F32x16 scale) {
      tree_.put(into, joins, i, fma(dot, scale, F32x16::zero()));
    });
  }

  // The next segment, `cols` padded inputs wide: use(i, its dot product, the scale) for each sum.
  template <class Use>
  [[gnu::always_inline]] inline void add_segment(int64_t cols, const Use& use) {
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
      for (int64_t c = 0; c < kChunks; ++c) add_chunk(c, dot);
    } else {
      for (int64_t c = 0; c < cols / kSegmentPad; ++c) add_chunk(c, dot);
    }
    codes_ += cols / kSegmentPad * Weights::kChunkBytes;
    x_ += cols;
    next_.from += cols / kSegmentPad * next_.step;

    I32x16 total[kTiles][kTokens];
#pragma GCC unroll 16
    for (int i = 0; i < kTiles; ++i) {
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        total[i][t] = dot[i][t][0];
        if constexpr (kChains == 2) total[i][t] = add(total[i][t], dot[i][t][1]);
      }
    }
    // Through memory: g++ 12 would move all of them about before it uses the first.
    if constexpr (!kSumsInRegisters) asm("" : "+m"(total));
#pragma GCC unroll 16
    for (int i = 0; i < kTiles; ++i) {
      const F32x16 scales = Weights::load_scales(scales_ + i * args_.tile_bytes);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        use(i * kTokens + t, to_float(total[i][t]),
            mul(scales, F32x16::splat(of_token(x_scales_, t)[0])));
    }
    scales_ += Weights::kScaleBytes;
    ++x_scales_;
    ++x_offsets_;
  }

  // Weights stay in registers for all tokens, a token's inputs for all tiles.
  [[gnu::always_inline]] inline void add_chunk(int64_t c,
                                               I32x16 (&dot)[kTiles][kTokens][kChains]) const {
    const uint8_t* codes = codes_ + c * Weights::kChunkBytes;
    const int8_t* x = x_ + c * kSegmentPad;
    for (int i = 0; !kStreams && i < kLinesAhead; ++i)
      __builtin_prefetch(next_.from + c * next_.step + i * next_.step / kLinesAhead, 0, kIntoL2);
    Chunk chunk[kTiles];
#pragma GCC unroll 16
    for (int i = 0; i < kTiles; ++i) {
      const uint8_t* p = codes + i * args_.tile_bytes;
      if constexpr (kStreams) {
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

  const QuantizedLinearArgs& args_;
  const int64_t tile_;
  const int64_t token_;
  // Of the next segment: of the first tile, of the first token's row.
  const uint8_t* scales_;
  const uint8_t* codes_;
  const int8_t* x_;
  const float* x_scales_;
  const int32_t* x_offsets_;
  NextTiles next_;
  int64_t k_ = 0, group_end_;
  LeafTree<kSums> tree_;
};

// The blocks of tokens share the lines of the tiles that follow, so that those come from memory in
// time and without haste.
template <class Weights>
NextTiles next_tiles(const QuantizedLinearArgs& args, const BlockPlace& place, int64_t tiles) {
  const int64_t lines = tiles * Weights::kChunkBytes / 64;  // for each chunk of a block
  const int64_t share = (lines + place.count - 1) / place.count;
  if (place.index * share >= lines) return {args.tiles, 0};
  const uint8_t* next = args.tiles + (place.tile + tiles) * args.tile_bytes;
  return {next + place.index * share * (tiles * args.tile_bytes / lines), share * 64};
}

template <class Weights>
void linear_quantized(const QuantizedLinearArgs& args) {
  const auto run = [&]<class Shape>(Shape, const BlockPlace& place) {
    QuantizedBlock<Weights, Shape::kTiles, Shape::kTokens>(
        args, place.tile, place.token, next_tiles<Weights>(args, place, Shape::kTiles))
        .run();
  };
  int64_t tile = 0;
  if constexpr (kPairedTiles > 1) {
    if (args.tokens > kStreamTokens)
      tile = run_blocks<kPairedTiles, Weights::kBlockTokens>(args, tile, run);
  }
  run_blocks<1, kStreamTokens>(args, tile, run);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
