// layers/attention_dot_kernel.h: attention over a cache of bf16 by vdpbf16ps (layers/attention.h
// says what is computed). Needs AVX512_BF16.
//
// A chunk of cache rows is brought into pairs once and then serves every head of every token:
//   keys    [pairs of elements][chunk rows][2]: the lanes of a score are 16 rows
//   values  [pairs of rows][columns][2]: the lanes are 16 columns
// Queries and softmax weights are rounded to bf16; a broadcast pair of them meets 16 lanes.
#pragma once

#include "layers/attention_kernel.h"
#include "layers/linear_dot_kernel.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// A block of sums: some heads by up to four vectors, of rows or of columns.
inline constexpr int kDotHeads = 6;
inline constexpr int kDotVectors = 4;

// The working set, in the memory that attention_kernel.h uses for fp32: pairs need half of it.
struct DotChunk {
  uint32_t* keys;    // [pairs][chunk]
  uint32_t* values;  // [chunk / 2][padded_value_width]
  int64_t pairs;     // of elements of a key; an odd one has a zero beside it
};

inline DotChunk dot_chunk(const AttentionArgs& args) {
  float* values = args.values;
  if (values == args.keys) values += args.chunk * args.padded_width / 2;
  return {reinterpret_cast<uint32_t*>(args.keys), reinterpret_cast<uint32_t*>(values),
          (args.width + 1) / 2};
}

inline const Bf16* cache_row(const AttentionArgs& args, int64_t position) {
  const int64_t block = args.block_table[position / args.block_size];
  const std::byte* rows = args.layer + block * args.block_bytes;
  return reinterpret_cast<const Bf16*>(rows + position % args.block_size * args.row_bytes);
}

// Elements [0, count) of p, at most 32; zeros follow.
inline __m512i load_elements(const Bf16* p, int64_t count) {
  const __mmask32 mask = count >= 32 ? 0xffffffffu : (1u << count) - 1;
  return _mm512_maskz_loadu_epi16(mask, p);
}

// rows[i] lane j becomes rows[j] lane i.
inline void transpose(__m512i (&rows)[16]) {
  __m512i by_pairs[16], by_fours[16], by_eights[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    by_pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    by_pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    by_fours[i] = _mm512_unpacklo_epi64(by_pairs[i], by_pairs[i + 2]);
    by_fours[i + 1] = _mm512_unpackhi_epi64(by_pairs[i], by_pairs[i + 2]);
    by_fours[i + 2] = _mm512_unpacklo_epi64(by_pairs[i + 1], by_pairs[i + 3]);
    by_fours[i + 3] = _mm512_unpackhi_epi64(by_pairs[i + 1], by_pairs[i + 3]);
  }
  // by_fours[4 g + c]: lanes c, c + 4, c + 8, c + 12 of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    by_eights[c] = _mm512_shuffle_i32x4(by_fours[c], by_fours[4 + c], 0x88);
    by_eights[4 + c] = _mm512_shuffle_i32x4(by_fours[c], by_fours[4 + c], 0xdd);
    by_eights[8 + c] = _mm512_shuffle_i32x4(by_fours[8 + c], by_fours[12 + c], 0x88);
    by_eights[12 + c] = _mm512_shuffle_i32x4(by_fours[8 + c], by_fours[12 + c], 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm512_shuffle_i32x4(by_eights[c], by_eights[8 + c], 0x88);
    rows[8 + c] = _mm512_shuffle_i32x4(by_eights[c], by_eights[8 + c], 0xdd);
    rows[4 + c] = _mm512_shuffle_i32x4(by_eights[4 + c], by_eights[12 + c], 0x88);
    rows[12 + c] = _mm512_shuffle_i32x4(by_eights[4 + c], by_eights[12 + c], 0xdd);
  }
}

// The keys of the chunk's rows [begin, end); to whole vectors of rows, zeros stand around them.
inline void pair_keys(const AttentionArgs& args, const DotChunk& chunk, int64_t first,
                      int64_t begin, int64_t end) {
  const auto is_seen = [=](int64_t row) { return begin <= row && row < end; };
  for (int64_t row = 0; row < end; row += 16) {
    const Bf16* from[16];
    for (int64_t i = 0; i < 16; ++i)
      from[i] = is_seen(row + i) ? cache_row(args, first + row + i) + args.key_offset : nullptr;
    for (int64_t k = 0; k < args.width; k += 32) {
      __m512i lines[16];
      for (int i = 0; i < 16; ++i)
        lines[i] = from[i] == nullptr ? _mm512_setzero_si512()
                                      : load_elements(from[i] + k, args.width - k);
      transpose(lines);
      const int64_t pairs = chunk.pairs - k / 2 < 16 ? chunk.pairs - k / 2 : 16;
      for (int64_t i = 0; i < pairs; ++i)
        _mm512_storeu_si512(chunk.keys + (k / 2 + i) * args.chunk + row, lines[i]);
    }
  }
}

// The values of the chunk's rows [begin, end); one without its neighbour has zeros beside it.
inline void pair_values(const AttentionArgs& args, const DotChunk& chunk, int64_t first,
                        int64_t begin, int64_t end) {
  for (int64_t row = begin / 2 * 2; row < end; row += 2) {
    const auto value = [&](int64_t at) {
      return begin <= at && at < end ? cache_row(args, first + at) + args.value_offset : nullptr;
    };
    const Bf16 *even = value(row), *odd = value(row + 1);
    uint32_t* out = chunk.values + row / 2 * args.padded_value_width;
    for (int64_t i = 0; i < args.value_width; i += 16) {
      const int64_t n = args.value_width - i < 16 ? args.value_width - i : 16;
      const auto widened = [&](const Bf16* p) {
        return p == nullptr
                   ? _mm512_setzero_si512()
                   : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p + i));
      };
      const __m512i low = widened(even), high = widened(odd);
      _mm512_storeu_si512(out + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

inline Pairs broadcast(const uint32_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return as_pairs(_mm512_set1_epi32(pair));
}

inline Pairs load_pairs_at(const uint32_t* p) { return as_pairs(_mm512_loadu_si512(p)); }

// What a token keeps: its queries as bf16, [num_heads][padded_width].
inline const Bf16* rounded_queries(const AttentionToken& token) {
  return reinterpret_cast<const Bf16*>(token.padded_q);
}

// Dot products of kHeads queries with kVectors times 16 rows of the chunk, from `row` on.
template <int kVectors, int kHeads>
void dot_scores(const AttentionArgs& args, const DotChunk& chunk, const AttentionToken& token,
                int64_t head, int64_t row) {
  const Bf16* q = rounded_queries(token) + head * args.padded_width;
  __m512 sums[kHeads][kVectors];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm512_setzero_ps();
  for (int64_t p = 0; p < chunk.pairs; ++p) {
    const uint32_t* line = chunk.keys + p * args.chunk + row;
    Pairs keys[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) keys[v] = load_pairs_at(line + v * 16);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Pairs query = broadcast_pair(q + h * args.padded_width + 2 * p, 2);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm512_dpbf16_ps(sums[h][v], keys[v], query);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(args.scores + (head + h) * args.chunk + row + v * 16, sums[h][v]);
}

// body(BlockShape<kVectors, heads>, head) for all heads: the fewest blocks, as equal as can be.
template <int kVectors, class Body>
void for_head_blocks(const AttentionArgs& args, const Body& body) {
  const int64_t count = (args.num_heads + kDotHeads - 1) / kDotHeads;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t head = i * args.num_heads / count;
    const int64_t heads = (i + 1) * args.num_heads / count - head;
    run_block<kVectors, kDotHeads>({0, head, i, count}, heads, body);
  }
}

template <int kVectors>
void dot_scores_of_heads(const AttentionArgs& args, const DotChunk& chunk,
                         const AttentionToken& token, int64_t row, int64_t vectors) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors)
      return dot_scores_of_heads<kVectors - 1>(args, chunk, token, row, vectors);
  }
  for_head_blocks<kVectors>(args, [&]<class Shape>(Shape, const BlockPlace& place) {
    dot_scores<kVectors, Shape::kTokens>(args, chunk, token, place.token, row);
  });
}

// Scores of the chunk's rows [begin, end), of all heads; minus infinity for the others.
inline void dot_score_chunk(const AttentionArgs& args, const DotChunk& chunk,
                            const AttentionToken& token, int64_t begin, int64_t end) {
  for (int64_t row = begin / 16 * 16; row < end; row += kDotVectors * 16) {
    const int64_t vectors = (end - row + 15) / 16;
    dot_scores_of_heads<kDotVectors>(args, chunk, token, row, vectors);
  }
  hide_scores(args, begin, end);
}

// sums[h][column ..] = sums * rescale + sum over the chunk's rows [begin, end) of weight * value.
template <int kVectors, int kHeads>
void dot_values(const AttentionArgs& args, const DotChunk& chunk, const AttentionToken& token,
                int64_t head, int64_t column, int64_t begin, int64_t end) {
  float* out = token.sums + head * args.padded_value_width + column;
  // Weights are bf16, at the beginning of a head's scores.
  const auto* weights = reinterpret_cast<const uint32_t*>(args.scores + head * args.chunk);
  __m512 sums[kHeads][kVectors];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    const __m512 rescale = _mm512_set1_ps(token.heads[head + h].rescale);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[h][v] =
          _mm512_mul_ps(_mm512_loadu_ps(out + h * args.padded_value_width + v * 16), rescale);
  }
  const auto add_pair = [&](int64_t pair, const auto& seen) __attribute__((always_inline)) {
    const uint32_t* line = chunk.values + pair * args.padded_value_width + column;
    Pairs values[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) values[v] = seen(load_pairs_at(line + v * 16));
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Pairs weight = broadcast(weights + h * args.chunk + pair);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[h][v] = _mm512_dpbf16_ps(sums[h][v], values[v], weight);
    }
  };
  // A row that is not seen may be a later token's, or no finite number: it counts as zeros.
  const auto half = [](uint32_t mask) {
    return [mask](Pairs pairs) {
      return as_pairs(_mm512_and_si512(reinterpret_cast<__m512i>(pairs),
                                       _mm512_set1_epi32(static_cast<int>(mask))));
    };
  };
  if (begin % 2 == 1) add_pair(begin / 2, half(0xffff0000u));
  for (int64_t pair = (begin + 1) / 2; pair < end / 2; ++pair)
    add_pair(pair, [](Pairs pairs) { return pairs; });
  if (end % 2 == 1) add_pair(end / 2, half(0xffffu));
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(out + h * args.padded_value_width + v * 16, sums[h][v]);
}

inline void dot_value_chunk(const AttentionArgs& args, const DotChunk& chunk,
                            const AttentionToken& token, int64_t begin, int64_t end) {
  int64_t column = 0;
  const auto body = [&]<class Shape>(Shape, const BlockPlace& place) {
    dot_values<Shape::kTiles, Shape::kTokens>(args, chunk, token, place.token, column, begin, end);
  };
  for (; column + kDotVectors * 16 <= args.padded_value_width; column += kDotVectors * 16)
    for_head_blocks<kDotVectors>(args, body);
  for (; column < args.padded_value_width; column += 16) for_head_blocks<1>(args, body);
}

inline void round_queries(const AttentionArgs& args, const AttentionToken& token) {
  auto* out = reinterpret_cast<Bf16*>(token.padded_q);
  for (int64_t head = 0; head < args.num_heads; ++head) {
    const float* q = token.q + head * args.width;
    for (int64_t i = 0; i < args.width; i += 16) {
      const int64_t n = args.width - i < 16 ? args.width - i : 16;
      store(out + head * args.padded_width + i, load_first(q + i, n));
    }
  }
}

inline void attend_dot_chunk(const AttentionArgs& args, const DotChunk& chunk,
                             const AttentionToken& token, int64_t first) {
  const ChunkRange seen = seen_rows(args, token, first);
  if (seen.begin >= seen.end) return;
  dot_score_chunk(args, chunk, token, seen.begin, seen.end);
  for (int64_t head = 0; head < args.num_heads; ++head) softmax_chunk<Bf16>(args, token, head);
  dot_value_chunk(args, chunk, token, seen.begin, seen.end);
}

inline void attention_dot(const AttentionArgs& args) {
  const DotChunk chunk = dot_chunk(args);
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    round_queries(args, args.tokens[t]);
    start_token(args, args.tokens[t]);
  }
  for_chunks(args, [&](int64_t first, int64_t begin, int64_t end) {
    pair_keys(args, chunk, first, begin, end);
    pair_values(args, chunk, first, begin, end);
    for (int64_t t = 0; t < args.num_tokens; ++t)
      attend_dot_chunk(args, chunk, args.tokens[t], first);
  });
  for (int64_t t = 0; t < args.num_tokens; ++t) finish_token(args, args.tokens[t]);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
