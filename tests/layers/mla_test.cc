#include "layers/mla.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <vector>

#include "base/bf16.h"
#include "layers/isa.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

std::vector<float> random_values(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// One sequence: its rows in a cache of two layers (the other layer holds rubbish), its blocks
// scattered over the pool, and one query per position.
struct Sequence {
  Sequence(const MlaShape& shape_, KvType type, int block_size, int64_t length_)
      : shape(shape_),
        length(length_),
        width(shape_.kv_lora_rank + shape_.rope_dim),
        rows(random_values(length * width, 1)),
        q(random_values(length * shape.num_heads * width, 2)) {
    const int64_t blocks = (length + block_size - 1) / block_size;
    for (int64_t i = 0; i < blocks; ++i) table.push_back(static_cast<int32_t>(blocks - 1 - i));
    const KvCacheShape cache_shape{.num_layers = 2,
                                   .num_blocks = blocks,
                                   .block_size = block_size,
                                   .width = width,
                                   .type = type,
                                   .int8_width = type == KvType::kInt8 ? shape.kv_lora_rank : 0,
                                   .int8_group = shape.kv_lora_rank};
    memory.assign(cache_shape.bytes(), std::byte{0x7f});
    cache = KvCache(cache_shape, memory.data());
  }

  void write(int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      cache.write(1, table, j, std::span(rows).subspan(j * width, width));
      for (int64_t i = 0; i < width; ++i)
        rows[j * width + i] = cache.element(cache.row(1, table, j), i);
    }
  }

  using Attention = decltype(mla_attention);
  // The outputs [positions, num_heads, kv_lora_rank] of the queries at `positions`.
  std::vector<float> attend(Attention attention, const std::vector<int64_t>& positions) const {
    const int64_t tokens = static_cast<int64_t>(positions.size());
    std::vector<float> some_q;
    std::vector<KvQuery> queries;
    for (const int64_t position : positions) {
      queries.push_back({table, position});
      const auto begin = q.begin() + position * shape.num_heads * width;
      some_q.insert(some_q.end(), begin, begin + shape.num_heads * width);
    }
    std::vector<float> o(tokens * shape.num_heads * shape.kv_lora_rank, NAN);
    attention(shape, cache, 1, queries, {some_q.data(), tokens, shape.num_heads * width},
              {o.data(), tokens, shape.num_heads * shape.kv_lora_rank});
    return o;
  }

  MlaShape shape;
  int64_t length;
  int64_t width;
  std::vector<float> rows;  // [length, width]; once written, as the cache holds them
  std::vector<float> q;     // [length, num_heads, width]
  std::vector<int32_t> table;
  std::vector<std::byte> memory;
  KvCache cache;
};

std::vector<int64_t> range(int64_t first, int64_t last) {
  std::vector<int64_t> positions;
  for (int64_t i = first; i < last; ++i) positions.push_back(i);
  return positions;
}

bool equal_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs `body` on every path of this machine, then goes back to the one in use.
void on_every_isa(const std::function<void()>& body) {
  const Isa before = active_isa();
  for (const Isa isa : supported_isas()) {
    SCOPED_TRACE(isa_name(isa));
    force_isa(isa);
    body();
  }
  force_isa(before);
}

struct Naive {
  std::vector<double> o;
  double tolerance;
  double largest_score = 0, largest_value = 0;  // sums of absolute products; values
};

// Softmax attention of one head in double, and how far fp32 may be from it.
Naive naive_attention(const Sequence& s, int64_t position, int head) {
  const float* q = s.q.data() + (position * s.shape.num_heads + head) * s.width;
  std::vector<double> scores;
  double largest_score = 0;  // of the absolute products, summed
  for (int64_t j = 0; j <= position; ++j) {
    double score = 0, absolute = 0;
    for (int64_t i = 0; i < s.width; ++i) {
      score += double{q[i]} * s.rows[j * s.width + i];
      absolute += std::abs(double{q[i]} * s.rows[j * s.width + i]);
    }
    scores.push_back(score * s.shape.softmax_scale);
    largest_score = std::max(largest_score, absolute * s.shape.softmax_scale);
  }
  const double greatest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - greatest);

  Naive naive{.o = std::vector<double>(s.shape.kv_lora_rank), .tolerance = 0};
  double largest_value = 0;
  for (int64_t j = 0; j <= position; ++j) {
    for (int i = 0; i < s.shape.kv_lora_rank; ++i) {
      const double value = s.rows[j * s.width + i];
      naive.o[i] += scores[j] / sum * value;
      largest_value = std::max(largest_value, std::abs(value));
    }
  }
  // Roundings: of a score, those of a lane's terms, the tree, the scale and the difference to the
  // greatest; a weight takes them over, with 2 ulp of exp and one rescaling per chunk; the weights'
  // sum and the weighted sum are off by as much again, and by one more rounding per term.
  const double lane_terms = static_cast<double>(s.width) / 16;
  const double terms = static_cast<double>(position + 1);
  const double score_error = largest_score * (lane_terms + 4 + 2) * 0x1p-24;
  const double weight_error = score_error + (4 + 3 * terms / kKvChunk) * 0x1p-24;
  naive.largest_score = largest_score;
  naive.largest_value = largest_value;
  naive.tolerance = largest_value * 2 * (weight_error + terms * 0x1p-24);
  return naive;
}

TEST(MlaAttention, AgreesWithSoftmaxAttentionInDouble) {
  for (const KvType type : {KvType::kF32, KvType::kInt8}) {
    Sequence s({.num_heads = 3, .kv_lora_rank = 40, .rope_dim = 8, .softmax_scale = 0.3f}, type, 16,
               201);
    s.write(0, 201);
    const std::vector<int64_t> positions{0, 1, 62, 63, 64, 127, 128, 200};

    const std::vector<float> o = s.attend(mla_attention, positions);

    for (size_t t = 0; t < positions.size(); ++t) {
      for (int head = 0; head < 3; ++head) {
        const Naive naive = naive_attention(s, positions[t], head);
        ASSERT_LT(naive.tolerance, 3e-4);
        for (int i = 0; i < 40; ++i)
          EXPECT_NEAR(o[(t * 3 + head) * 40 + i], naive.o[i], naive.tolerance)
              << "position " << positions[t] << " head " << head << " element " << i;
      }
    }
  }
}

TEST(MlaAttention, OverABf16CacheIsAsNearAsRoundedQueriesAndWeightsAllow) {
  Sequence s({.num_heads = 3, .kv_lora_rank = 41, .rope_dim = 8, .softmax_scale = 0.3f},
             KvType::kBf16, 16, 201);
  s.write(0, 201);

  on_every_isa([&] {
    for (const int64_t position : {0, 1, 63, 64, 200}) {
      const std::vector<float> o = s.attend(mla_attention, {position});
      for (int head = 0; head < 3; ++head) {
        const Naive naive = naive_attention(s, position, head);
        // A query off by 2^-9 moves a score, and with it the weight, by as much of what its
        // products add up to; the weight's own rounding comes on top.
        const double tolerance =
            naive.tolerance + 2 * naive.largest_value * (naive.largest_score + 1.01) * 0x1p-9;
        for (int i = 0; i < 41; ++i)
          EXPECT_NEAR(o[head * 41 + i], naive.o[i], tolerance)
              << "position " << position << " head " << head << " element " << i;
      }
    }
  });
}

TEST(MlaAttention, RowsThatATokenDoesNotSeeMayHoldAnything) {
  for (const KvType type : {KvType::kF32, KvType::kBf16}) {
    Sequence s({.num_heads = 2, .kv_lora_rank = 16, .rope_dim = 4, .softmax_scale = 1}, type, 4, 8);
    s.write(0, 8);
    Sequence poisoned = s;
    poisoned.cache = KvCache(s.cache.shape(), poisoned.memory.data());
    std::fill(poisoned.rows.begin() + 5 * 20, poisoned.rows.end(), NAN);
    poisoned.write(5, 8);

    on_every_isa([&] {
      std::vector<float> o = poisoned.attend(mla_attention, {3, 4, 5, 6});
      EXPECT_TRUE(std::isnan(o.back()));
      o.resize(2 * 2 * 16);
      EXPECT_TRUE(equal_bits(o, s.attend(mla_attention, {3, 4})));
    });
  }
}

TEST(MlaAttention, TheFirstTokenSeesItselfOnly) {
  Sequence s({.num_heads = 1, .kv_lora_rank = 16, .rope_dim = 4, .softmax_scale = 1}, KvType::kF32,
             4, 8);
  s.write(0, 8);

  const std::vector<float> o = s.attend(mla_attention, {0});

  EXPECT_EQ(o, std::vector<float>(s.rows.begin(), s.rows.begin() + 16));
}

TEST(MlaAttention, EveryPathEqualsTheReferenceBitForBit) {
  const std::vector<int64_t> positions = range(0, 201);
  for (const int heads : {1, 3, 8}) {
    for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
      const MlaShape shape{
          .num_heads = heads, .kv_lora_rank = 72, .rope_dim = 6, .softmax_scale = 0.5f};
      Sequence same(shape, type, 128, 201);
      same.write(0, 201);
      on_every_isa([&] {
        const std::vector<float> expected = same.attend(reference::mla_attention, positions);
        for (const int block_size : {1, 3, 16, 128}) {
          Sequence s(shape, type, block_size, 201);
          s.write(0, 201);
          EXPECT_TRUE(equal_bits(s.attend(mla_attention, positions), expected))
              << heads << " heads, blocks of " << block_size << ", type " << int(type);
        }
      });
    }
  }
}

TEST(MlaAttention, EveryPathEqualsTheReferenceAtDeepSeeksWidth) {
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    Sequence s({.num_heads = 6, .kv_lora_rank = 512, .rope_dim = 64, .softmax_scale = 0.04f}, type,
               128, 131);
    s.write(0, 131);

    on_every_isa([&] {
      const std::vector<float> expected = s.attend(reference::mla_attention, {130});
      EXPECT_TRUE(equal_bits(s.attend(mla_attention, {130}), expected));
    });
  }
}

TEST(MlaAttention, ATokenDoesNotDependOnPagingOrBatchOrOnWhenRowsWereWritten) {
  const MlaShape shape{.num_heads = 5, .kv_lora_rank = 32, .rope_dim = 16, .softmax_scale = 0.3f};
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    Sequence whole(shape, type, 128, 150);
    whole.write(0, 150);
    const std::vector<float> expected = whole.attend(mla_attention, range(0, 150));

    for (const int block_size : {1, 3, 16, 64, 200}) {
      Sequence s(shape, type, block_size, 150);
      std::vector<float> got;
      int64_t written = 0;
      for (const int64_t chunk : {1, 62, 2, 20, 65}) {
        s.write(written, written + chunk);
        const std::vector<float> o = s.attend(mla_attention, range(written, written + chunk));
        got.insert(got.end(), o.begin(), o.end());
        written += chunk;
      }
      EXPECT_TRUE(equal_bits(got, expected)) << "blocks of " << block_size;
    }
  }
}

TEST(MlaAttention, QueriesThatShareAReadingMayStandAnywhereInTheirSequences) {
  Sequence s({.num_heads = 5, .kv_lora_rank = 32, .rope_dim = 16, .softmax_scale = 0.3f},
             KvType::kBf16, 16, 300);
  s.write(0, 300);
  const std::vector<int32_t> other = s.table;  // a second sequence with the same rows
  std::vector<KvQuery> queries;
  for (const int64_t position : {299, 0, 64, 63, 128, 7, 298, 299, 1, 200})
    queries.push_back({s.table, position});
  for (const int64_t position : {17, 250}) queries.push_back({other, position});
  queries.push_back({s.table, 65});
  const auto tokens = std::ssize(queries);
  const Matrix<const float> q(s.q.data(), tokens, s.shape.num_heads * s.width);
  std::vector<float> expected(tokens * s.shape.num_heads * s.shape.kv_lora_rank);
  const Matrix<float> want(expected.data(), tokens, s.shape.num_heads * s.shape.kv_lora_rank);

  on_every_isa([&] {
    reference::mla_attention(s.shape, s.cache, 1, queries, q, want);
    std::vector<float> got(expected.size());
    mla_attention(s.shape, s.cache, 1, queries, q, {got.data(), tokens, want.cols});
    EXPECT_TRUE(equal_bits(got, expected));
  });
}

TEST(MlaAttention, HasTheSameBitsForAnyNumberOfThreads) {
  Sequence s({.num_heads = 10, .kv_lora_rank = 32, .rope_dim = 16, .softmax_scale = 0.3f},
             KvType::kBf16, 16, 150);
  s.write(0, 150);
  for (const int64_t tokens : {1, 2, 3, 5, 150}) {
    const std::vector<int64_t> positions = range(150 - tokens, 150);
    const std::vector<float> want = s.attend(mla_attention, positions);
    for (const int threads : {2, 3, 8}) {
      Team team({.threads = threads});
      const UseTeam use(team);
      EXPECT_TRUE(equal_bits(s.attend(mla_attention, positions), want))
          << tokens << " tokens, " << threads << " threads";
    }
  }
}

TEST(MlaAttention, SurvivesScoresThatDwarfAllEarlierOnes) {
  Sequence s({.num_heads = 2, .kv_lora_rank = 16, .rope_dim = 0, .softmax_scale = 1}, KvType::kF32,
             16, 140);
  for (int i = 0; i < 16; ++i) s.rows[130 * 16 + i] = 100 * s.q[139 * 2 * 16 + i];
  s.write(0, 140);

  const std::vector<float> o = s.attend(mla_attention, {139});

  for (int i = 0; i < 16; ++i) EXPECT_EQ(o[i], s.rows[130 * 16 + i]);
}

TEST(MlaAttention, RefusesATableThatDoesNotReach) {
  const MlaShape shape{.num_heads = 1, .kv_lora_rank = 16, .rope_dim = 4, .softmax_scale = 1};
  Sequence s(shape, KvType::kF32, 4, 8);
  s.write(0, 8);

  s.table = {1};
  EXPECT_THROW(s.attend(mla_attention, {4}), std::logic_error);
  s.table = {7, 0};  // block 7 is not in the pool
  EXPECT_THROW(s.attend(mla_attention, {4}), std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
