#include "layers/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "base/bf16.h"
#include "base/error.h"
#include "layers/exp.h"
#include "layers/kernels.h"
#include "layers/linear_dot.h"

namespace troupe::layers {
namespace {

void check_group(const AttentionGroup& group, const KvCache& cache) {
  TROUPE_CHECK(group.num_heads > 0 && group.key_width > 0 && group.value_width > 0 &&
                   group.softmax_scale > 0,
               "{} heads, key {}, value {}, scale {}", group.num_heads, group.key_width,
               group.value_width, group.softmax_scale);
  TROUPE_CHECK(group.window >= 0, "a window of {}", group.window);
  TROUPE_CHECK(group.key_offset >= 0 && group.value_offset >= 0 &&
                   group.key_offset + group.key_width <= cache.shape().width &&
                   group.value_offset + group.value_width <= cache.shape().width,
               "key {}+{}, value {}+{} in cache rows of {}", group.key_offset, group.key_width,
               group.value_offset, group.value_width, cache.shape().width);
}

int64_t first_position(const AttentionGroup& group, const KvQuery& query) {
  return group.window == 0 ? 0 : std::max<int64_t>(0, query.position + 1 - group.window);
}

// Every block that the query reads must exist.
void check_query(const AttentionGroup& group, const KvCache& cache, int layer,
                 const KvQuery& query) {
  cache.row(layer, query.block_table, query.position);
  const int64_t first = first_position(group, query) / cache.shape().block_size;
  const int64_t last = query.position / cache.shape().block_size;
  for (const int32_t block : query.block_table.subspan(first, last + 1 - first))
    cache.block(layer, block);
}

bool same_sequence(const KvQuery& a, const KvQuery& b) {
  return a.block_table.data() == b.block_table.data() &&
         a.block_table.size() == b.block_table.size();
}

void check_queries(const AttentionGroup& group, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  const auto tokens = std::ssize(queries);
  TROUPE_CHECK(1 <= tokens && tokens <= kAttentionTokens, "{} queries", tokens);
  TROUPE_CHECK(q.rows == tokens && q.cols == group.num_heads * group.key_width &&
                   o.rows == tokens && o.cols == group.num_heads * group.value_width,
               "q [{}, {}], o [{}, {}] for {} queries", q.rows, q.cols, o.rows, o.cols, tokens);
  for (const KvQuery& query : queries) {
    TROUPE_CHECK(same_sequence(query, queries[0]), "queries of two sequences");
    check_query(group, cache, layer, query);
  }
}

bool multiplies_bf16(const KvCache& cache) {
  return cache.shape().type == KvType::kBf16 && kernels().attention_dot != nullptr;
}

bool value_begins_key(const AttentionGroup& group) {
  return group.value_offset == group.key_offset && group.value_width <= group.key_width;
}

// The working set of a call: a chunk of rows and its scores; queries and sums of every token. Kept
// by each thread and grown to the largest shape that the thread has seen.
class Scratch {
 public:
  void assign(AttentionArgs& args, bool separate_values, std::span<AttentionToken> tokens) {
    const int64_t values = separate_values ? args.chunk * args.padded_value_width : 0;
    const int64_t query_size = args.num_heads * args.padded_width;
    const int64_t sums_size = args.num_heads * args.padded_value_width;
    const int64_t count = std::ssize(tokens);
    const int64_t total = args.chunk * args.padded_width + values + args.num_heads * args.chunk +
                          count * (query_size + sums_size);
    lines_.resize(std::max<size_t>(lines_.size(), total / 16));
    heads_.resize(std::max<size_t>(heads_.size(), count * args.num_heads));

    float* free = lines_.data()->lanes;
    const auto take = [&](int64_t size) { return std::exchange(free, free + size); };
    args.keys = take(args.chunk * args.padded_width);
    args.values = separate_values ? take(values) : args.keys;
    args.value_stride = separate_values ? args.padded_value_width : args.padded_width;
    args.scores = take(args.num_heads * args.chunk);
    AttentionHead* heads = heads_.data();
    for (AttentionToken& token : tokens) {
      token.padded_q = take(query_size);
      token.sums = take(sums_size);
      token.heads = std::exchange(heads, heads + args.num_heads);
    }
  }

 private:
  struct alignas(64) Line {
    float lanes[16];
  };
  std::vector<Line> lines_;
  std::vector<AttentionHead> heads_;
};

int64_t round_up_to_lanes(int64_t n) { return (n + 15) / 16 * 16; }

}  // namespace

void attend(const AttentionGroup& group, const KvCache& cache, int layer,
            std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  check_group(group, cache);
  check_queries(group, cache, layer, queries, q, o);
  AttentionToken tokens[kAttentionTokens];
  for (size_t t = 0; t < queries.size(); ++t) {
    tokens[t].q = q.row(t);
    tokens[t].out = o.row(t);
    tokens[t].first_position = first_position(group, queries[t]);
    tokens[t].position = queries[t].position;
  }
  AttentionArgs args{
      .tokens = tokens,
      .num_tokens = std::ssize(queries),
      .sinks = group.sinks,
      .layer = cache.block(layer, 0),
      .block_bytes = static_cast<int64_t>(cache.shape().stride_bytes()),
      .block_table = queries[0].block_table.data(),
      .block_size = cache.shape().block_size,
      .num_heads = group.num_heads,
      .row_bytes = static_cast<int64_t>(cache.shape().row_bytes()),
      .int8_width = cache.shape().int8_width,
      .int8_group = cache.shape().int8_group,
      .bf16_at = static_cast<int64_t>(cache.shape().bf16_at()),
      .codes_at = static_cast<int64_t>(cache.shape().codes_at()),
      .key_offset = group.key_offset,
      .width = group.key_width,
      .padded_width = round_up_to_lanes(group.key_width),
      .value_offset = group.value_offset,
      .value_width = group.value_width,
      .padded_value_width = round_up_to_lanes(group.value_width),
      .chunk = kKvChunk,
      .scale = group.softmax_scale,
  };
  thread_local Scratch scratch;
  scratch.assign(args, !value_begins_key(group), std::span(tokens, queries.size()));
  switch (cache.shape().type) {
    case KvType::kF32:
      return kernels().attention_f32(args);
    case KvType::kBf16:
      return multiplies_bf16(cache) ? kernels().attention_dot(args)
                                    : kernels().attention_bf16(args);
    case KvType::kInt8:
      return kernels().attention_int8(args);
  }
}

std::span<const int64_t> attention_runs(std::span<const KvQuery> queries) {
  thread_local std::vector<int64_t> begins;
  begins.clear();
  for (size_t t = 0; t < queries.size(); ++t) {
    const auto at = static_cast<int64_t>(t);
    if (t == 0 || at - begins.back() == kAttentionTokens ||
        !same_sequence(queries[t], queries[t - 1]))
      begins.push_back(at);
  }
  begins.push_back(std::ssize(queries));
  return begins;
}

namespace reference {
namespace {

// The tree in which 16 lanes are added.
float reduce_add(const float (&lanes)[16]) {
  float sums[16];
  std::copy(lanes, lanes + 16, sums);
  for (int half = 8; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

struct OnlineSoftmax {
  float greatest = -std::numeric_limits<float>::infinity();
  float sum = 0;

  // Turns a chunk's scores into weights, that of position j in lane j mod 16 of the sum; returns
  // the factor for everything summed before.
  float update(std::span<float> scores, bool round) {
    const float old_greatest = greatest;
    for (const float score : scores) greatest = std::max(greatest, score);
    const float rescale = exp_f32(old_greatest - greatest);
    float lanes[16] = {};
    for (size_t j = 0; j < scores.size(); ++j) {
      scores[j] = exp_f32(scores[j] - greatest);
      if (round) scores[j] = round_to_bf16(scores[j]);
      lanes[j % 16] += scores[j];
    }
    sum = sum * rescale + reduce_add(lanes);
    return rescale;
  }
};

float dot(const AttentionGroup& group, const KvCache& cache, const float* q, const std::byte* row) {
  const auto key = [&](int64_t i) { return cache.element(row, group.key_offset + i); };
  if (multiplies_bf16(cache)) {
    float sum = 0;
    for (int64_t i = 0; i < group.key_width; i += 2) {
      const bool pair = i + 1 < group.key_width;
      sum = dot_pair(sum, to_bf16(key(i)), to_bf16(pair ? key(i + 1) : 0), to_bf16(q[i]),
                     to_bf16(pair ? q[i + 1] : 0));
    }
    return sum;
  }
  float lanes[16] = {};
  for (int64_t i = 0; i < group.key_width; ++i)
    lanes[i % 16] = std::fma(q[i], key(i), lanes[i % 16]);
  return reduce_add(lanes);
}

// One element of what a chunk adds: value(j) at its position j, of which it sees [begin, end).
template <class Value>
float add_values(bool as_pairs, std::span<const float> weights, int64_t begin, int64_t end,
                 const Value& value, float sum) {
  if (!as_pairs) {
    for (int64_t j = begin; j < end; ++j) sum = std::fma(weights[j], value(j), sum);
    return sum;
  }
  const auto seen = [&](int64_t j) { return to_bf16(begin <= j && j < end ? value(j) : 0); };
  for (int64_t j = begin / 2 * 2; j < end; j += 2)
    sum = dot_pair(sum, seen(j), seen(j + 1), to_bf16(weights[j]), to_bf16(weights[j + 1]));
  return sum;
}

// One head: q [key_width], o [value_width].
void attend_head(const AttentionGroup& group, const KvCache& cache, int layer, const KvQuery& query,
                 const float* q, OnlineSoftmax softmax, float* o) {
  const bool as_pairs = multiplies_bf16(cache);
  std::fill_n(o, group.value_width, 0.0f);
  const int64_t first_seen = first_position(group, query);
  const int64_t first_chunk = first_seen / kKvChunk * kKvChunk;
  for (int64_t first = first_chunk; first <= query.position; first += kKvChunk) {
    const int64_t count = std::min<int64_t>(kKvChunk, query.position + 1 - first);
    const int64_t begin = std::max<int64_t>(0, first_seen - first);
    const auto row = [&](int64_t j) { return cache.row(layer, query.block_table, first + j); };
    float weights[kKvChunk];
    std::fill_n(weights, kKvChunk, -std::numeric_limits<float>::infinity());
    for (int64_t j = begin; j < count; ++j)
      weights[j] = dot(group, cache, q, row(j)) * group.softmax_scale;
    const float rescale = softmax.update(weights, as_pairs);
    for (int64_t i = 0; i < group.value_width; ++i)
      o[i] = add_values(
          as_pairs, weights, begin, count,
          [&](int64_t j) { return cache.element(row(j), group.value_offset + i); }, o[i] * rescale);
  }
  for (int64_t i = 0; i < group.value_width; ++i) o[i] /= softmax.sum;
}

}  // namespace

void attend(const AttentionGroup& group, const KvCache& cache, int layer,
            std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  for (size_t t = 0; t < queries.size(); ++t) {
    for (int h = 0; h < group.num_heads; ++h) {
      OnlineSoftmax softmax;
      if (group.sinks != nullptr) softmax = {.greatest = group.sinks[h], .sum = 1};
      attend_head(group, cache, layer, queries[t], q.row(t) + h * group.key_width, softmax,
                  o.row(t) + h * group.value_width);
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
