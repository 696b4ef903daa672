// layers/linear_kernel.h: y = W x over F32x16, for weights in tile order (layers/packed_matrix.h).
//
// The lanes are 16 outputs. A block of tiles x tokens sums in registers while k ascends, so a
// weight is loaded (and widened) once for several tokens and enough independent chains hide the
// latency of the fma.
#pragma once

#include "layers/linear_blocks.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Sizes of a block: as many sums as fit into the registers beside the weights of one k. One token
// streams its weights from memory and takes more tiles, only to have chains enough.
inline constexpr int kBlockTiles = kVectorRegisters >= 32 ? 4 : 1;
inline constexpr int kBlockTokens = kVectorRegisters >= 8 ? 6 : 1;
inline constexpr int kOneTokenTiles = kVectorRegisters >= 32 ? 8 : 4;

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

// The outputs of kTiles tiles for kTokens tokens.
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
    store_outputs(args_, tile_, token_, kTiles, kTokens, tree.finish());
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

// The weights of a few tiles come from memory for the first block of tokens, then from the cache.
template <class T>
void linear(const LinearArgs& args) {
  const auto run = [&]<class Shape>(Shape, const BlockPlace& place) {
    LinearBlock<T, Shape::kTiles, Shape::kTokens>(args, place.tile, place.token).run();
  };
  int64_t tile = 0;
  if (args.tokens == 1) tile = run_blocks<kOneTokenTiles, 1>(args, tile, run);
  tile = run_blocks<kBlockTiles, kBlockTokens>(args, tile, run);
  run_blocks<1, kBlockTokens>(args, tile, run);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
