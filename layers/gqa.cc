#include "layers/gqa.h"

#include <algorithm>

#include "base/error.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

// The query heads [begin, end) that read a kv head, of those the rank has.
struct Heads {
  int begin, end;
};
Heads heads_of(const GqaShape& shape, int kv_head) {
  const int begin = kv_head * shape.heads_per_kv - shape.first_head;
  return {std::max(0, begin), std::min(shape.num_heads, begin + shape.heads_per_kv)};
}

AttentionGroup group_of(const GqaShape& shape, int kv_head) {
  return {.key_offset = int64_t{kv_head} * shape.head_dim,
          .key_width = shape.head_dim,
          .value_offset = int64_t{shape.num_kv_heads + kv_head} * shape.head_dim,
          .value_width = shape.head_dim,
          .softmax_scale = shape.softmax_scale};
}

void check_shapes(const GqaShape& shape, int64_t sliding_window, std::span<const float> sinks,
                  std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  const int64_t tokens = static_cast<int64_t>(queries.size());
  const int64_t width = int64_t{shape.num_heads} * shape.head_dim;
  TROUPE_CHECK(
      shape.num_heads > 0 && shape.heads_per_kv > 0 && 0 <= shape.first_head &&
          shape.first_head < shape.heads_per_kv &&
          (shape.first_head + shape.num_heads - 1) / shape.heads_per_kv + 1 == shape.num_kv_heads,
      "{} heads from {} on, {} of which share one of {} kv heads", shape.num_heads,
      shape.first_head, shape.heads_per_kv, shape.num_kv_heads);
  TROUPE_CHECK(sliding_window >= 0, "sliding window {}", sliding_window);
  TROUPE_CHECK(sinks.empty() || std::ssize(sinks) == shape.num_heads, "{} sinks for {} heads",
               sinks.size(), shape.num_heads);
  TROUPE_CHECK(q.rows == tokens && q.cols == width && o.rows == tokens && o.cols == width,
               "q [{}, {}], o [{}, {}] for {} queries", q.rows, q.cols, o.rows, o.cols, tokens);
}

// The query heads of some tokens of a sequence that read one kv head, as `attend_heads` computes
// them.
template <class Attend>
void attend_group(const GqaShape& shape, const KvCache& cache, int layer, int64_t sliding_window,
                  std::span<const float> sinks, std::span<const KvQuery> queries, int kv_head,
                  Matrix<const float> q, Matrix<float> o, const Attend& attend_heads) {
  const auto [begin, end] = heads_of(shape, kv_head);
  AttentionGroup group = group_of(shape, kv_head);
  group.num_heads = end - begin;
  group.window = sliding_window;
  if (!sinks.empty()) group.sinks = &sinks[begin];
  const int64_t first = int64_t{begin} * shape.head_dim;
  const int64_t width = int64_t{end - begin} * shape.head_dim;
  attend_heads(group, cache, layer, queries, q.columns_from(first, width),
               o.columns_from(first, width));
}

}  // namespace

void gqa_attention(const GqaShape& shape, const KvCache& cache, int layer, int64_t sliding_window,
                   std::span<const float> sinks, std::span<const KvQuery> queries,
                   Matrix<const float> q, Matrix<float> o) {
  check_shapes(shape, sliding_window, sinks, queries, q, o);
  const std::span<const int64_t> runs = attention_runs(queries);
  parallel_for((std::ssize(runs) - 1) * shape.num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / shape.num_kv_heads;
      const int64_t first = runs[run], count = runs[run + 1] - first;
      attend_group(shape, cache, layer, sliding_window, sinks, queries.subspan(first, count),
                   static_cast<int>(i % shape.num_kv_heads), q.rows_from(first, count),
                   o.rows_from(first, count), attend);
    }
  });
}

void reference::gqa_attention(const GqaShape& shape, const KvCache& cache, int layer,
                              int64_t sliding_window, std::span<const float> sinks,
                              std::span<const KvQuery> queries, Matrix<const float> q,
                              Matrix<float> o) {
  check_shapes(shape, sliding_window, sinks, queries, q, o);
  for (int kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head)
    attend_group(shape, cache, layer, sliding_window, sinks, queries, kv_head, q, o,
                 reference::attend);
}

}  // namespace troupe::layers
