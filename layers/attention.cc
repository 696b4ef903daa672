#include "layers/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "base/bf16.h"
#include "base/error.h"
#include "layers/exp.h"
#include "layers/kernels.h"

namespace troupe::layers {
namespace {

void check_group(const AttentionGroup& group, const KvCache& cache) {
  TROUPE_CHECK(group.num_heads > 0 && group.key_width > 0 && group.value_width > 0 &&
                   group.softmax_scale > 0,
               "{} heads, key {}, value {}, scale {}", group.num_heads, group.key_width,
               group.value_width, group.softmax_scale);
  TROUPE_CHECK(group.key_offset >= 0 && group.value_offset >= 0 &&
                   group.key_offset + group.key_width <= cache.shape().width &&
                   group.value_offset + group.value_width <= cache.shape().width,
               "key {}+{}, value {}+{} in cache rows of {}", group.key_offset, group.key_width,
               group.value_offset, group.value_width, cache.shape().width);
}

// Every block that the query reads must exist.
void check_query(const AttentionGroup& group, const KvCache& cache, int layer,
                 const KvQuery& query) {
  TROUPE_CHECK(0 <= group.first_position && group.first_position <= query.position,
               "positions {} to {}", group.first_position, query.position);
  cache.row(layer, query.block_table, query.position);
  const int64_t blocks = query.position / cache.shape().block_size + 1;
  for (const int32_t block : query.block_table.first(blocks)) cache.block(layer, block);
}

bool value_begins_key(const AttentionGroup& group) {
  return group.value_offset == group.key_offset && group.value_width <= group.key_width;
}

// The working set of one token: a chunk of rows, the queries, scores and sums of all heads. Kept by
// each thread and grown to the largest shape that the thread has seen.
class Scratch {
 public:
  void assign(AttentionArgs& args, bool separate_values) {
    const int64_t values = separate_values ? args.chunk * args.padded_value_width : 0;
    const int64_t sizes[] = {args.chunk * args.padded_width, values,
                             args.num_heads * args.padded_width, args.num_heads * args.chunk,
                             args.num_heads * args.padded_value_width};
    float** const parts[] = {&args.keys, &args.values, &args.padded_q, &args.scores, &args.sums};
    int64_t total = 0;
    for (const int64_t size : sizes) total += size;
    lines_.resize(std::max<size_t>(lines_.size(), total / 16));
    heads_.resize(std::max<size_t>(heads_.size(), args.num_heads));
    int64_t offset = 0;
    for (int i = 0; i < 5; ++i) {
      *parts[i] = lines_.data()->lanes + offset;
      offset += sizes[i];
    }
    args.value_stride = args.padded_value_width;
    if (!separate_values) {
      args.values = args.keys;
      args.value_stride = args.padded_width;
    }
    args.heads = heads_.data();
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

void attend(const AttentionGroup& group, const KvCache& cache, int layer, const KvQuery& query,
            const float* q, float* o) {
  check_group(group, cache);
  check_query(group, cache, layer, query);
  AttentionArgs args{
      .q = q,
      .sinks = group.sinks,
      .out = o,
      .layer = cache.block(layer, 0),
      .block_bytes = static_cast<int64_t>(cache.shape().block_bytes()),
      .block_table = query.block_table.data(),
      .block_size = cache.shape().block_size,
      .first_position = group.first_position,
      .position = query.position,
      .num_heads = group.num_heads,
      .row_width = cache.shape().width,
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
  scratch.assign(args, !value_begins_key(group));
  if (cache.shape().type == KvType::kF32)
    kernels().attention_f32(args);
  else
    kernels().attention_bf16(args);
}

namespace reference {
namespace {

float element(const KvCache& cache, const std::byte* row, int64_t i) {
  return cache.shape().type == KvType::kF32 ? reinterpret_cast<const float*>(row)[i]
                                            : to_float(reinterpret_cast<const Bf16*>(row)[i]);
}

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
  float update(std::span<float> scores) {
    const float old_greatest = greatest;
    for (const float score : scores) greatest = std::max(greatest, score);
    const float rescale = exp_f32(old_greatest - greatest);
    float lanes[16] = {};
    for (size_t j = 0; j < scores.size(); ++j) {
      scores[j] = exp_f32(scores[j] - greatest);
      lanes[j % 16] += scores[j];
    }
    sum = sum * rescale + reduce_add(lanes);
    return rescale;
  }
};

float dot(const AttentionGroup& group, const KvCache& cache, const float* q, const std::byte* row) {
  float lanes[16] = {};
  for (int64_t i = 0; i < group.key_width; ++i)
    lanes[i % 16] = std::fma(q[i], element(cache, row, group.key_offset + i), lanes[i % 16]);
  return reduce_add(lanes);
}

// One head: q [key_width], o [value_width].
void attend_head(const AttentionGroup& group, const KvCache& cache, int layer, const KvQuery& query,
                 const float* q, OnlineSoftmax softmax, float* o) {
  std::fill_n(o, group.value_width, 0.0f);
  const int64_t first_chunk = group.first_position / kKvChunk * kKvChunk;
  for (int64_t first = first_chunk; first <= query.position; first += kKvChunk) {
    const int64_t count = std::min<int64_t>(kKvChunk, query.position + 1 - first);
    const int64_t begin = std::max<int64_t>(0, group.first_position - first);
    float weights[kKvChunk];
    std::fill_n(weights, kKvChunk, -std::numeric_limits<float>::infinity());
    for (int64_t j = begin; j < count; ++j)
      weights[j] = dot(group, cache, q, cache.row(layer, query.block_table, first + j)) *
                   group.softmax_scale;
    const float rescale = softmax.update(weights);
    for (int64_t i = 0; i < group.value_width; ++i) o[i] *= rescale;
    for (int64_t j = begin; j < count; ++j) {
      const std::byte* row = cache.row(layer, query.block_table, first + j);
      for (int64_t i = 0; i < group.value_width; ++i)
        o[i] = std::fma(weights[j], element(cache, row, group.value_offset + i), o[i]);
    }
  }
  for (int64_t i = 0; i < group.value_width; ++i) o[i] /= softmax.sum;
}

}  // namespace

void attend(const AttentionGroup& group, const KvCache& cache, int layer, const KvQuery& query,
            const float* q, float* o) {
  for (int h = 0; h < group.num_heads; ++h) {
    OnlineSoftmax softmax;
    if (group.sinks != nullptr) softmax = {.greatest = group.sinks[h], .sum = 1};
    attend_head(group, cache, layer, query, q + h * group.key_width, softmax,
                o + h * group.value_width);
  }
}

}  // namespace reference
}  // namespace troupe::layers
