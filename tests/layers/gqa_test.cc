#include "layers/gqa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/bf16.h"
#include "tests/layers/every_isa.h"

namespace troupe::layers {
namespace {

// One sequence in layer 1 of a cache of two layers (the other holds rubbish), its blocks in reverse
// order, and a query for every position.
struct Sequence {
  Sequence(const GqaShape& shape_, KvType type, int block_size, int64_t length_,
           int64_t row_padding = 0)
      : shape(shape_),
        length(length_),
        width(2 * int64_t{shape_.num_kv_heads} * shape_.head_dim),
        rows(normal_floats(length_ * (width + row_padding), 1)),
        q(normal_floats(length_ * q_width(), 2)),
        row_width(width + row_padding) {
    const int64_t blocks = (length + block_size - 1) / block_size;
    for (int64_t i = 0; i < blocks; ++i) table.push_back(static_cast<int32_t>(blocks - 1 - i));
    const KvCacheShape cache_shape{.num_layers = 2,
                                   .num_blocks = blocks,
                                   .block_size = block_size,
                                   .width = row_width,
                                   .type = type,
                                   .int8_width = type == KvType::kInt8 ? row_width : 0,
                                   .int8_group = shape.head_dim};
    memory.assign(cache_shape.bytes(), std::byte{0x7f});
    cache = KvCache(cache_shape, memory.data());
    for (int64_t j = 0; j < length; ++j) {
      cache.write(1, table, j, std::span(rows).subspan(j * row_width, row_width));
      for (int64_t i = 0; i < row_width; ++i)
        rows[j * row_width + i] = cache.element(cache.row(1, table, j), i);
    }
  }

  int64_t q_width() const { return int64_t{shape.num_heads} * shape.head_dim; }
  const float* key(int64_t j, int g) const { return &rows[j * row_width + g * shape.head_dim]; }
  const float* value(int64_t j, int g) const { return key(j, shape.num_kv_heads + g); }

  using Attention = decltype(gqa_attention);
  // [positions, num_heads, head_dim]
  std::vector<float> attend(Attention attention, const std::vector<int64_t>& positions) const {
    std::vector<KvQuery> queries;
    std::vector<float> some_q;
    for (const int64_t position : positions) {
      queries.push_back({table, position});
      some_q.insert(some_q.end(), q.begin() + position * q_width(),
                    q.begin() + (position + 1) * q_width());
    }
    const auto tokens = static_cast<int64_t>(positions.size());
    std::vector<float> o(tokens * q_width(), NAN);
    attention(shape, cache, 1, window, sinks, queries, {some_q.data(), tokens, q_width()},
              {o.data(), tokens, q_width()});
    return o;
  }

  GqaShape shape;
  int64_t length, width;
  std::vector<float> rows;  // [length, row_width], as the cache holds them
  std::vector<float> q;     // [length, num_heads, head_dim]
  int64_t row_width;
  int64_t window = 0;
  std::vector<float> sinks;
  std::vector<int32_t> table;
  std::vector<std::byte> memory;
  KvCache cache;
};

// sdpa of openai/gpt-oss, gpt_oss/torch/model.py, for one head in double: scores of what the window
// shows, the sink behind them, softmax over all, the sink's weight dropped.
std::vector<double> naive_attention(const Sequence& s, int64_t position, int head) {
  const GqaShape& shape = s.shape;
  const int g = (shape.first_head + head) / shape.heads_per_kv;
  const float* q = &s.q[position * s.q_width() + head * shape.head_dim];
  std::vector<double> scores;
  const int64_t first = s.window == 0 ? 0 : std::max<int64_t>(0, position - (s.window - 1));
  for (int64_t j = first; j <= position; ++j) {
    double score = 0;
    for (int i = 0; i < shape.head_dim; ++i) score += double{q[i]} * s.key(j, g)[i];
    scores.push_back(score * shape.softmax_scale);
  }
  if (!s.sinks.empty()) scores.push_back(s.sinks[head]);
  const double greatest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - greatest);
  std::vector<double> o(shape.head_dim);
  for (int64_t j = first; j <= position; ++j)
    for (int i = 0; i < shape.head_dim; ++i) o[i] += scores[j - first] / sum * s.value(j, g)[i];
  return o;
}

void expect_naive(const Sequence& s, const std::vector<int64_t>& positions) {
  const std::vector<float> o = s.attend(gqa_attention, positions);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (int head = 0; head < s.shape.num_heads; ++head) {
      const std::vector<double> expected = naive_attention(s, positions[t], head);
      for (int i = 0; i < s.shape.head_dim; ++i)
        // Scores reach 10, so a weight is off by up to 10 * (2 + 4 + 2) * 2^-24 and as much again
        // for the sums; values reach 4.
        ASSERT_NEAR(o[t * s.q_width() + head * s.shape.head_dim + i], expected[i], 4e-5)
            << "position " << positions[t] << " head " << head << " element " << i;
    }
  }
}

constexpr GqaShape kShape{.num_heads = 8,
                          .num_kv_heads = 2,
                          .heads_per_kv = 4,
                          .first_head = 0,
                          .head_dim = 40,
                          .softmax_scale = 0.16f};
const std::vector<int64_t> kPositions{0, 1, 14, 15, 16, 62, 63, 64, 79, 80, 127, 128, 143, 200};

TEST(GqaAttention, EachGroupOfQueryHeadsReadsItsKeysAndValues) {
  for (const KvType type : {KvType::kF32, KvType::kInt8})
    expect_naive(Sequence(kShape, type, 16, 201), kPositions);
}

TEST(GqaAttention, ASinkTakesItsShareOfTheSoftmax) {
  Sequence s(kShape, KvType::kF32, 16, 201);
  s.sinks = {-3, 0, 2, 9, -20, 1, 0.5f, 3};

  expect_naive(s, kPositions);
}

TEST(GqaAttention, AWindowHidesWhatLiesBeforeIt) {
  for (const int window : {1, 16, 64, 65, 128, 500}) {
    SCOPED_TRACE(window);
    Sequence s(kShape, KvType::kF32, 16, 201);
    s.window = window;
    s.sinks = {-3, 0, 2, 9, -20, 1, 0.5f, 3};

    expect_naive(s, kPositions);
  }
}

// A rank's heads may begin and end inside a group: 6 query heads share a kv head, a rank has 4.
TEST(GqaAttention, HeadsMayBeginInsideAGroup) {
  GqaShape shape = kShape;
  shape.num_heads = 4;
  shape.heads_per_kv = 6;
  for (const int first_head : {0, 1, 2}) {
    shape.first_head = first_head;
    shape.num_kv_heads = 1;
    expect_naive(Sequence(shape, KvType::kF32, 16, 70), {69});
  }
  shape.first_head = 4;
  shape.num_kv_heads = 2;
  expect_naive(Sequence(shape, KvType::kF32, 16, 70), {69});
}

TEST(GqaAttention, CacheRowsMayBeLongerThanNeeded) {
  expect_naive(Sequence(kShape, KvType::kF32, 16, 70, 80), {69});
}

bool equal_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(GqaAttention, EveryPathEqualsTheReferenceBitForBit) {
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < 140; ++i) positions.push_back(i);
  for (const int head_dim : {16, 40, 64}) {
    for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
      for (const int window : {0, 16, 70}) {
        GqaShape shape = kShape;
        shape.head_dim = head_dim;
        Sequence s(shape, type, 3, 140);
        s.window = window;
        if (window != 16) s.sinks = {-3, 0, 2, 9, -20, 1, 0.5f, 3};
        std::vector<float> expected;

        on_every_isa([&] {
          if (expected.empty() || active_isa() == Isa::kAvx512Bf16)
            expected = s.attend(reference::gqa_attention, positions);
          EXPECT_TRUE(equal_bits(s.attend(gqa_attention, positions), expected))
              << "head_dim " << head_dim << ", window " << window << ", type " << int(type);
        });
      }
    }
  }
}

void expect_a_head_to_stand_alone(KvType type) {
  Sequence whole(kShape, type, 128, 150);
  whole.window = 70;
  const std::vector<float> expected = whole.attend(gqa_attention, {149});
  for (const int block_size : {1, 16, 200}) {
    Sequence s(kShape, type, block_size, 150);
    s.window = 70;
    EXPECT_TRUE(equal_bits(s.attend(gqa_attention, {149}), expected)) << block_size;
  }

  // Heads 5 to 7 alone, whose kv head is the second.
  GqaShape part = kShape;
  part.num_heads = 3;
  part.num_kv_heads = 1;
  part.first_head = 1;
  Sequence s(part, type, 16, 150);
  s.window = 70;
  for (int64_t j = 0; j < 150; ++j) {
    std::vector<float> row(whole.key(j, 1), whole.key(j, 1) + 40);
    row.insert(row.end(), whole.value(j, 1), whole.value(j, 1) + 40);
    s.cache.write(1, s.table, j, row);
  }
  std::copy_n(&whole.q[149 * 8 * 40 + 5 * 40], 3 * 40, &s.q[149 * 3 * 40]);
  const std::vector<float> heads = s.attend(gqa_attention, {149});
  EXPECT_TRUE(equal_bits(heads, {expected.begin() + 5 * 40, expected.begin() + 8 * 40}));
}

TEST(GqaAttention, AHeadDoesNotDependOnPagingOrOnWhichHeadsTheRankHas) {
  expect_a_head_to_stand_alone(KvType::kBf16);
  expect_a_head_to_stand_alone(KvType::kInt8);
}

// What a window has left behind is somebody else's: not even its blocks are looked at.
TEST(GqaAttention, BlocksBehindTheWindowMayBeGone) {
  for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
    for (const int block_size : {3, 16, 64, 128}) {
      Sequence s(kShape, type, block_size, 201);
      s.window = 70;
      const std::vector<int64_t> positions{195, 196, 200};
      const std::vector<int32_t> whole = s.table;
      on_every_isa([&] {
        s.table = whole;
        const std::vector<float> expected = s.attend(gqa_attention, positions);
        for (int64_t b = 0; (b + 1) * block_size <= 195 + 1 - 70; ++b) s.table[b] = -1;

        EXPECT_TRUE(equal_bits(s.attend(gqa_attention, positions), expected)) << block_size;
      });
      if (s.table[0] == -1) {
        EXPECT_THROW(s.attend(gqa_attention, {60}), std::logic_error);
      }
    }
  }
}

TEST(GqaAttention, RefusesShapesThatDoNotMatch) {
  GqaShape shape = kShape;
  shape.num_kv_heads = 3;
  EXPECT_THROW(Sequence(shape, KvType::kF32, 16, 2).attend(gqa_attention, {1}), std::logic_error);
  Sequence s(kShape, KvType::kF32, 16, 2);
  s.sinks = {1};
  EXPECT_THROW(s.attend(gqa_attention, {1}), std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
