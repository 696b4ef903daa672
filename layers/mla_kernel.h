// layers/mla_kernel.h: absorbed attention of one token over F32x16, all heads at once.
//
// A chunk of cache rows is widened to fp32 once and then serves every head. The working set is the
// caller's memory; its rows are padded with zeros to whole vectors, so that the loops have no
// tails.
#pragma once

#include "layers/kernels.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Accumulators are kept for this many heads by this many rows, or vectors of columns.
inline constexpr int kMlaTile = kVectorRegisters >= 32 ? 4 : 2;

template <class Element>
void widen_row(const Element* row, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) store(out + i, load(row + i));
  if (i < width) store(out + i, load_first(row + i, width - i));
}

template <class Element>
void widen_chunk(const MlaArgs& args, int64_t first, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t position = first + j;
    const int64_t block = args.block_table[position / args.block_size];
    const std::byte* rows = args.layer + block * args.block_bytes;
    const int64_t row = position % args.block_size;
    widen_row(reinterpret_cast<const Element*>(rows) + row * args.width, args.width,
              args.rows + j * args.padded_width);
  }
}

// Dot products of kHeads queries with kMlaTile rows of the chunk.
template <int kHeads>
void score_tile(const MlaArgs& args, int64_t head, int64_t row) {
  const float* q = args.padded_q + head * args.padded_width;
  const float* rows = args.rows + row * args.padded_width;
  F32x16 sums[kHeads][kMlaTile] = {};
  for (int64_t i = 0; i < args.padded_width; i += 16) {
    F32x16 k[kMlaTile];
#pragma GCC unroll 4
    for (int j = 0; j < kMlaTile; ++j) k[j] = load(rows + j * args.padded_width + i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 query = load(q + h * args.padded_width + i);
#pragma GCC unroll 4
      for (int j = 0; j < kMlaTile; ++j) sums[h][j] = fma(query, k[j], sums[h][j]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    float* scores = args.scores + (head + h) * args.chunk + row;
    for (int j = 0; j < kMlaTile; ++j) scores[j] = reduce_add(sums[h][j]);
  }
}

// Scores of the chunk's first `count` rows, of all heads; minus infinity for the others.
inline void score_chunk(const MlaArgs& args, int64_t count) {
  // The last tile may take rows of an earlier chunk along; what they give is overwritten below.
  for (int64_t row = 0; row < count; row += kMlaTile) {
    int64_t head = 0;
    for (; head + kMlaTile <= args.num_heads; head += kMlaTile)
      score_tile<kMlaTile>(args, head, row);
    for (; head < args.num_heads; ++head) score_tile<1>(args, head, row);
  }
  for (int64_t head = 0; head < args.num_heads; ++head)
    for (int64_t j = count; j < args.chunk; ++j)
      args.scores[head * args.chunk + j] = -__builtin_inff();
}

// Scores of one head become exp(score - greatest so far); its sum follows, and rescale tells what
// earlier values are to be multiplied by.
inline void softmax_chunk(const MlaArgs& args, int64_t head) {
  MlaHead& state = args.heads[head];
  float* scores = args.scores + head * args.chunk;
  F32x16 greatest = F32x16::splat(state.greatest);
  for (int64_t i = 0; i < args.chunk; i += 16) {
    const F32x16 score = mul(load(scores + i), F32x16::splat(args.scale));
    store(scores + i, score);
    greatest = max(greatest, score);
  }
  const F32x16 new_greatest = F32x16::splat(reduce_max(greatest));

  F32x16 sum = F32x16::zero();
  for (int64_t i = 0; i < args.chunk; i += 16) {
    const F32x16 weight = exp(sub(load(scores + i), new_greatest));
    store(scores + i, weight);
    sum = add(sum, weight);
  }
  store_first(&state.rescale, exp(sub(F32x16::splat(state.greatest), new_greatest)), 1);
  store_first(&state.greatest, new_greatest, 1);
  state.sum = state.sum * state.rescale + reduce_add(sum);
}

// values[h][column ..] = values * rescale + sum over the chunk of weight * latent.
template <int kHeads, int kVectors>
void value_tile(const MlaArgs& args, int64_t head, int64_t column, int64_t count) {
  float* values = args.values + head * args.padded_lora + column;
  const float* weights = args.scores + head * args.chunk;
  F32x16 sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kVectors; ++c)
      sums[h][c] = mul(load(values + h * args.padded_lora + c * 16),
                       F32x16::splat(args.heads[head + h].rescale));
  for (int64_t j = 0; j < count; ++j) {
    F32x16 latent[kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c)
      latent[c] = load(args.rows + j * args.padded_width + column + c * 16);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 weight = F32x16::splat(weights[h * args.chunk + j]);
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) sums[h][c] = fma(weight, latent[c], sums[h][c]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kVectors; ++c) store(values + h * args.padded_lora + c * 16, sums[h][c]);
}

template <int kVectors>
void value_columns(const MlaArgs& args, int64_t column, int64_t count) {
  int64_t head = 0;
  for (; head + kMlaTile <= args.num_heads; head += kMlaTile)
    value_tile<kMlaTile, kVectors>(args, head, column, count);
  for (; head < args.num_heads; ++head) value_tile<1, kVectors>(args, head, column, count);
}

inline void value_chunk(const MlaArgs& args, int64_t count) {
  int64_t column = 0;
  for (; column + kMlaTile * 16 <= args.padded_lora; column += kMlaTile * 16)
    value_columns<kMlaTile>(args, column, count);
  for (; column < args.padded_lora; column += 16) value_columns<1>(args, column, count);
}

inline void start_token(const MlaArgs& args) {
  for (int64_t head = 0; head < args.num_heads; ++head) {
    widen_row(args.q + head * args.width, args.width, args.padded_q + head * args.padded_width);
    args.heads[head] = MlaHead{};
  }
  for (int64_t i = 0; i < args.num_heads * args.padded_lora; i += 16)
    store(args.values + i, F32x16::zero());
}

inline void finish_token(const MlaArgs& args) {
  for (int64_t head = 0; head < args.num_heads; ++head) {
    const F32x16 sum = F32x16::splat(args.heads[head].sum);
    for (int64_t i = 0; i < args.lora; i += 16) {
      const int64_t n = args.lora - i < 16 ? args.lora - i : 16;
      const F32x16 value = load(args.values + head * args.padded_lora + i);
      store_first(args.out + head * args.lora + i, div(value, sum), n);
    }
  }
}

template <class Element>
void mla(const MlaArgs& args) {
  start_token(args);
  for (int64_t first = 0; first <= args.position; first += args.chunk) {
    const int64_t left = args.position + 1 - first;
    const int64_t count = left < args.chunk ? left : args.chunk;
    widen_chunk<Element>(args, first, count);
    score_chunk(args, count);
    for (int64_t head = 0; head < args.num_heads; ++head) softmax_chunk(args, head);
    value_chunk(args, count);
  }
  finish_token(args);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
