#include "layers/mla.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/bf16.h"
#include "base/error.h"
#include "layers/exp.h"
#include "layers/kernels.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

void check_shapes(const MlaShape& shape, const KvCache& cache, std::span<const KvQuery> queries,
                  Matrix<const float> q, Matrix<float> o) {
  const int64_t tokens = static_cast<int64_t>(queries.size());
  const int64_t width = shape.kv_lora_rank + shape.rope_dim;
  TROUPE_CHECK(shape.num_heads > 0 && shape.kv_lora_rank > 0 && shape.rope_dim >= 0 &&
                   shape.softmax_scale > 0,
               "{} heads, latent {} + {}, scale {}", shape.num_heads, shape.kv_lora_rank,
               shape.rope_dim, shape.softmax_scale);
  TROUPE_CHECK(cache.shape().width == width, "cache rows of {} for a latent of {} + {}",
               cache.shape().width, shape.kv_lora_rank, shape.rope_dim);
  TROUPE_CHECK(q.rows == tokens && q.cols == shape.num_heads * width && o.rows == tokens &&
                   o.cols == shape.num_heads * int64_t{shape.kv_lora_rank},
               "q [{}, {}], o [{}, {}] for {} queries", q.rows, q.cols, o.rows, o.cols, tokens);
}

// Every block that the query reads must exist.
void check_query(const KvCache& cache, int layer, const KvQuery& query) {
  cache.row(layer, query.block_table, query.position);
  const int64_t blocks = query.position / cache.shape().block_size + 1;
  for (const int32_t block : query.block_table.first(blocks)) cache.block(layer, block);
}

// The working set of one token: a chunk of rows, the queries, scores and sums of all heads. Kept by
// each thread and grown to the largest shape that the thread has seen.
class Scratch {
 public:
  void assign(MlaArgs& args) {
    const int64_t sizes[] = {args.chunk * args.padded_width, args.num_heads * args.padded_width,
                             args.num_heads * args.chunk, args.num_heads * args.padded_lora};
    float** const parts[] = {&args.rows, &args.padded_q, &args.scores, &args.values};
    lines_.resize(
        std::max<size_t>(lines_.size(), (sizes[0] + sizes[1] + sizes[2] + sizes[3]) / 16));
    heads_.resize(std::max<size_t>(heads_.size(), args.num_heads));
    int64_t offset = 0;
    for (int i = 0; i < 4; ++i) {
      *parts[i] = lines_.data()->lanes + offset;
      offset += sizes[i];
    }
    args.heads = heads_.data();
  }

 private:
  struct alignas(64) Line {
    float lanes[16];
  };
  std::vector<Line> lines_;
  std::vector<MlaHead> heads_;
};

int64_t round_up_to_lanes(int64_t n) { return (n + 15) / 16 * 16; }

MlaArgs arguments(const MlaShape& shape, const KvCache& cache, int layer) {
  const int64_t width = cache.shape().width;
  return {
      .layer = cache.block(layer, 0),
      .block_bytes = static_cast<int64_t>(cache.shape().block_bytes()),
      .block_size = cache.shape().block_size,
      .num_heads = shape.num_heads,
      .width = width,
      .padded_width = round_up_to_lanes(width),
      .lora = shape.kv_lora_rank,
      .padded_lora = round_up_to_lanes(shape.kv_lora_rank),
      .chunk = kKvChunk,
      .scale = shape.softmax_scale,
  };
}

// A thread takes some heads of one token. Whoever reads a cache row widens it, so heads are divided
// only where there are too few tokens for the threads.
int heads_per_part(int num_heads, int64_t tokens) {
  constexpr int kHeads = 4;  // the kernel's unit
  const int threads = current_team() == nullptr ? 1 : current_team()->size();
  if (tokens % threads == 0 || tokens >= 4 * threads) return num_heads;
  const int units = (num_heads + kHeads - 1) / kHeads;
  return (units + threads - 1) / threads * kHeads;
}

}  // namespace

void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  check_shapes(shape, cache, queries, q, o);
  if (queries.empty()) return;
  const auto mla = cache.shape().type == KvType::kF32 ? kernels().mla_f32 : kernels().mla_bf16;
  for (const auto& query : queries) check_query(cache, layer, query);
  const int part_heads = heads_per_part(shape.num_heads, q.rows);
  const int64_t parts = (shape.num_heads + part_heads - 1) / part_heads;
  parallel_for(q.rows * parts, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    MlaArgs args = arguments(shape, cache, layer);
    scratch.assign(args);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / parts, head = i % parts * part_heads;
      args.num_heads = std::min<int64_t>(part_heads, shape.num_heads - head);
      args.q = q.row(t) + head * args.width;
      args.out = o.row(t) + head * args.lora;
      args.block_table = queries[t].block_table.data();
      args.position = queries[t].position;
      mla(args);
    }
  });
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

  // Turns a chunk's scores into weights; returns the factor for everything summed before.
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

// One head of one token: q [kv_lora_rank + rope_dim], o [kv_lora_rank].
void attend(const MlaShape& shape, const KvCache& cache, int layer, const KvQuery& query,
            const float* q, float* o) {
  OnlineSoftmax softmax;
  std::fill_n(o, shape.kv_lora_rank, 0.0f);
  for (int64_t first = 0; first <= query.position; first += kKvChunk) {
    const int64_t count = std::min<int64_t>(kKvChunk, query.position + 1 - first);
    float weights[kKvChunk];
    for (int64_t j = 0; j < count; ++j) {
      const std::byte* row = cache.row(layer, query.block_table, first + j);
      float lanes[16] = {};
      for (int64_t i = 0; i < cache.shape().width; ++i)
        lanes[i % 16] = std::fma(q[i], element(cache, row, i), lanes[i % 16]);
      weights[j] = reduce_add(lanes) * shape.softmax_scale;
    }
    const float rescale = softmax.update(std::span(weights).first(count));
    for (int i = 0; i < shape.kv_lora_rank; ++i) o[i] *= rescale;
    for (int64_t j = 0; j < count; ++j) {
      const std::byte* row = cache.row(layer, query.block_table, first + j);
      for (int i = 0; i < shape.kv_lora_rank; ++i)
        o[i] = std::fma(weights[j], element(cache, row, i), o[i]);
    }
  }
  for (int i = 0; i < shape.kv_lora_rank; ++i) o[i] /= softmax.sum;
}

}  // namespace

void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  check_shapes(shape, cache, queries, q, o);
  for (int64_t t = 0; t < q.rows; ++t) {
    for (int h = 0; h < shape.num_heads; ++h) {
      attend(shape, cache, layer, queries[t], q.row(t) + h * cache.shape().width,
             o.row(t) + h * int64_t{shape.kv_lora_rank});
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
