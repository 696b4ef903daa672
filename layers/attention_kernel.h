// layers/attention_kernel.h: attention over F32x16 of some tokens of a sequence, all heads that
// share one key and value head: with absorbed MLA (layers/mla.h) every head of the rank, else a
// group (layers/gqa.h).
//
// A chunk of cache rows is read and widened to fp32 once, and then serves every head of every
// token. The working set is the caller's memory; its rows are padded with zeros to whole vectors,
// so that the loops have no tails.
#pragma once

#include "layers/kernels.h"
#include "layers/kv_codes_kernel.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Accumulators are kept for this many heads by this many rows, or vectors of columns.
inline constexpr int kAttentionTile = kVectorRegisters >= 32 ? 4 : 2;

template <class Element>
void widen_row(const Element* row, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) store(out + i, load(row + i));
  if (i < width) store(out + i, load_first(row + i, width - i));
}

// Widens elements [offset, offset + width) of a cache row.
template <class Element>
void widen_elements(const AttentionArgs&, const std::byte* row, int64_t offset, int64_t width,
                    float* out) {
  widen_row(reinterpret_cast<const Element*>(row) + offset, width, out);
}

template <>
inline void widen_elements<int8_t>(const AttentionArgs& args, const std::byte* row, int64_t offset,
                                   int64_t width, float* out) {
  const auto* scales = reinterpret_cast<const float*>(row);
  const auto* codes = reinterpret_cast<const int8_t*>(row + args.codes_at);
  const auto* rest = reinterpret_cast<const Bf16*>(row + args.bf16_at);
  const int64_t end = offset + width;
  const int64_t codes_end = end < args.int8_width ? end : args.int8_width;
  int64_t i = offset;
  while (i < codes_end) {
    const int64_t group = i / args.int8_group, group_end = (group + 1) * args.int8_group;
    const int64_t stop = group_end < codes_end ? group_end : codes_end;
    widen_codes(codes + i, stop - i, scales[group], out + i - offset);
    i = stop;
  }
  for (; i < end; i += 16) {
    const int64_t n = end - i < 16 ? end - i : 16;
    store_first(out + i - offset, load_first(rest + i - args.int8_width, n), n);
  }
  if (width % 16 != 0) store_first(out + width, F32x16::zero(), 16 - width % 16);
}

// Widens elements [offset, offset + width) of the chunk's rows [begin, end).
template <class Element>
void widen_chunk(const AttentionArgs& args, int64_t first, int64_t begin, int64_t end,
                 int64_t offset, int64_t width, float* out, int64_t stride) {
  for (int64_t j = begin; j < end; ++j) {
    const int64_t position = first + j;
    const int64_t block = args.block_table[position / args.block_size];
    const std::byte* rows = args.layer + block * args.block_bytes;
    const int64_t row = position % args.block_size;
    widen_elements<Element>(args, rows + row * args.row_bytes, offset, width, out + j * stride);
  }
}

// Dot products of kHeads queries with kAttentionTile rows of the chunk.
template <int kHeads>
void score_tile(const AttentionArgs& args, const AttentionToken& token, int64_t head, int64_t row) {
  const float* q = token.padded_q + head * args.padded_width;
  const float* keys = args.keys + row * args.padded_width;
  F32x16 sums[kHeads][kAttentionTile] = {};
  for (int64_t i = 0; i < args.padded_width; i += 16) {
    F32x16 k[kAttentionTile];
#pragma GCC unroll 4
    for (int j = 0; j < kAttentionTile; ++j) k[j] = load(keys + j * args.padded_width + i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 query = load(q + h * args.padded_width + i);
#pragma GCC unroll 4
      for (int j = 0; j < kAttentionTile; ++j) sums[h][j] = fma(query, k[j], sums[h][j]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    float* scores = args.scores + (head + h) * args.chunk + row;
    for (int j = 0; j < kAttentionTile; ++j) scores[j] = reduce_add(sums[h][j]);
  }
}

// Rows outside [begin, end) are not seen: minus infinity is their score.
inline void hide_scores(const AttentionArgs& args, int64_t begin, int64_t end) {
  for (int64_t head = 0; head < args.num_heads; ++head) {
    float* scores = args.scores + head * args.chunk;
    for (int64_t j = 0; j < begin; ++j) scores[j] = -__builtin_inff();
    for (int64_t j = end; j < args.chunk; ++j) scores[j] = -__builtin_inff();
  }
}

// Scores of the chunk's rows [begin, end), of all heads; minus infinity for the others.
inline void score_chunk(const AttentionArgs& args, const AttentionToken& token, int64_t begin,
                        int64_t end) {
  // The first and last tile may take along rows that are not seen, or that are an earlier chunk's;
  // what they give is overwritten below.
  for (int64_t row = begin / kAttentionTile * kAttentionTile; row < end; row += kAttentionTile) {
    int64_t head = 0;
    for (; head + kAttentionTile <= args.num_heads; head += kAttentionTile)
      score_tile<kAttentionTile>(args, token, head, row);
    for (; head < args.num_heads; ++head) score_tile<1>(args, token, head, row);
  }
  hide_scores(args, begin, end);
}

inline F32x16 as_weight(F32x16 weight, float*) { return weight; }
inline F32x16 as_weight(F32x16 weight, Bf16*) { return round_to_bf16(weight); }

// Scores of one head become weights, exp(score - greatest so far), of type Weight: the first
// elements of their memory. Their sum follows, and rescale tells what earlier values are to be
// multiplied by.
template <class Weight>
void softmax_chunk(const AttentionArgs& args, const AttentionToken& token, int64_t head) {
  AttentionHead& state = token.heads[head];
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
    auto* const weights = reinterpret_cast<Weight*>(scores);
    const F32x16 weight = as_weight(exp(sub(load(scores + i), new_greatest)), weights);
    store(weights + i, weight);
    sum = add(sum, weight);
  }
  store_first(&state.rescale, exp(sub(F32x16::splat(state.greatest), new_greatest)), 1);
  store_first(&state.greatest, new_greatest, 1);
  state.sum = state.sum * state.rescale + reduce_add(sum);
}

// sums[h][column ..] = sums * rescale + sum over the chunk's rows [begin, end) of weight * value.
template <int kHeads, int kVectors>
void value_tile(const AttentionArgs& args, const AttentionToken& token, int64_t head,
                int64_t column, int64_t begin, int64_t end) {
  float* out = token.sums + head * args.padded_value_width + column;
  const float* weights = args.scores + head * args.chunk;
  F32x16 sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kVectors; ++c)
      sums[h][c] = mul(load(out + h * args.padded_value_width + c * 16),
                       F32x16::splat(token.heads[head + h].rescale));
  for (int64_t j = begin; j < end; ++j) {
    F32x16 value[kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c)
      value[c] = load(args.values + j * args.value_stride + column + c * 16);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 weight = F32x16::splat(weights[h * args.chunk + j]);
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) sums[h][c] = fma(weight, value[c], sums[h][c]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kVectors; ++c)
      store(out + h * args.padded_value_width + c * 16, sums[h][c]);
}

template <int kVectors>
void value_columns(const AttentionArgs& args, const AttentionToken& token, int64_t column,
                   int64_t begin, int64_t end) {
  int64_t head = 0;
  for (; head + kAttentionTile <= args.num_heads; head += kAttentionTile)
    value_tile<kAttentionTile, kVectors>(args, token, head, column, begin, end);
  for (; head < args.num_heads; ++head)
    value_tile<1, kVectors>(args, token, head, column, begin, end);
}

inline void value_chunk(const AttentionArgs& args, const AttentionToken& token, int64_t begin,
                        int64_t end) {
  int64_t column = 0;
  for (; column + kAttentionTile * 16 <= args.padded_value_width; column += kAttentionTile * 16)
    value_columns<kAttentionTile>(args, token, column, begin, end);
  for (; column < args.padded_value_width; column += 16)
    value_columns<1>(args, token, column, begin, end);
}

inline void pad_queries(const AttentionArgs& args, const AttentionToken& token) {
  for (int64_t head = 0; head < args.num_heads; ++head)
    widen_row(token.q + head * args.width, args.width, token.padded_q + head * args.padded_width);
}

inline void start_token(const AttentionArgs& args, const AttentionToken& token) {
  for (int64_t head = 0; head < args.num_heads; ++head) {
    // A sink is a score that was seen before all others and has no value.
    token.heads[head] = AttentionHead{};
    if (args.sinks != nullptr) {
      token.heads[head].greatest = args.sinks[head];
      token.heads[head].sum = 1;
    }
  }
  for (int64_t i = 0; i < args.num_heads * args.padded_value_width; i += 16)
    store(token.sums + i, F32x16::zero());
}

inline void finish_token(const AttentionArgs& args, const AttentionToken& token) {
  for (int64_t head = 0; head < args.num_heads; ++head) {
    const F32x16 sum = F32x16::splat(token.heads[head].sum);
    for (int64_t i = 0; i < args.value_width; i += 16) {
      const int64_t n = args.value_width - i < 16 ? args.value_width - i : 16;
      const F32x16 value = load(token.sums + head * args.padded_value_width + i);
      store_first(token.out + head * args.value_width + i, div(value, sum), n);
    }
  }
}

// The part of the chunk at `first` that the token sees.
struct ChunkRange {
  int64_t begin, end;
};
inline ChunkRange seen_rows(const AttentionArgs& args, const AttentionToken& token, int64_t first) {
  const int64_t left = token.position + 1 - first;
  return {token.first_position > first ? token.first_position - first : 0,
          left < args.chunk ? left : args.chunk};
}

inline void attend_chunk(const AttentionArgs& args, const AttentionToken& token, int64_t first) {
  const auto [begin, end] = seen_rows(args, token, first);
  if (begin >= end) return;
  score_chunk(args, token, begin, end);
  for (int64_t head = 0; head < args.num_heads; ++head) softmax_chunk<float>(args, token, head);
  value_chunk(args, token, begin, end);
}

// body(first, begin, end) for each chunk that any token sees: its first position, and which of its
// rows. Those before may be gone: a window's blocks are used again for others.
template <class Body>
void for_chunks(const AttentionArgs& args, const Body& body) {
  int64_t seen = args.tokens[0].first_position, last = 0;
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const AttentionToken& token = args.tokens[t];
    if (token.first_position < seen) seen = token.first_position;
    if (token.position > last) last = token.position;
  }
  for (int64_t first = seen / args.chunk * args.chunk; first <= last; first += args.chunk) {
    const int64_t left = last + 1 - first;
    body(first, seen > first ? seen - first : 0, left < args.chunk ? left : args.chunk);
  }
}

template <class Element>
void attention(const AttentionArgs& args) {
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    pad_queries(args, args.tokens[t]);
    start_token(args, args.tokens[t]);
  }
  for_chunks(args, [&](int64_t first, int64_t begin, int64_t end) {
    widen_chunk<Element>(args, first, begin, end, args.key_offset, args.width, args.keys,
                         args.padded_width);
    if (args.values != args.keys)
      widen_chunk<Element>(args, first, begin, end, args.value_offset, args.value_width,
                           args.values, args.value_stride);
    for (int64_t t = 0; t < args.num_tokens; ++t) attend_chunk(args, args.tokens[t], first);
  });
  for (int64_t t = 0; t < args.num_tokens; ++t) finish_token(args, args.tokens[t]);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
