#include "layers/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace troupe::layers {
namespace {

// What a logit counts as when tokens are ordered: a NaN is no better than minus infinity.
float order_key(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

// The total order "falling logit, then rising id".
struct Better {
  std::span<const float> logits;

  bool operator()(int32_t a, int32_t b) const {
    const float left = order_key(logits[a]);
    const float right = order_key(logits[b]);
    return left > right || (left == right && a < b);
  }
};

// A heap's top is the greatest by its comparison: by this one, the best.
struct Worse {
  Better better;

  bool operator()(int32_t a, int32_t b) const { return better(b, a); }
};

// log of the sum of exp(logit - best).
double log_sum(std::span<const float> logits, double best) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - best);
  return std::log(sum);
}

uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }
uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }

// The candidates of one draw, best first. They are sorted only as far as somebody looks: a draw
// seldom needs more than a few of a vocabulary.
class RankedTokens {
 public:
  // order, cumulative: memory for one element per logit. The best logit is finite.
  RankedTokens(std::span<const float> logits, float best_logit, const SamplingParams& params,
               std::span<int32_t> order, std::span<double> cumulative)
      : logits_(logits),
        best_logit_(best_logit),
        temperature_(params.temperature),
        order_(order),
        cumulative_(cumulative) {
    std::iota(order_.begin(), order_.end(), 0);
    if (params.top_k > 0) keep(static_cast<size_t>(params.top_k));
    for (const int32_t token : order_) total_ += weight(token);
    std::make_heap(order_.begin(), order_.end(), Worse{{logits_}});
  }

  size_t size() const { return order_.size(); }
  double total() const { return total_; }  // weight of all candidates

  int32_t token(size_t rank) {
    rank_up_to(rank);
    return order_[order_.size() - 1 - rank];
  }
  // Of one candidate, in units of the best one's.
  double weight_of(size_t rank) { return weight(token(rank)); }
  // Weight of the candidates 0 .. rank.
  double cumulative(size_t rank) {
    rank_up_to(rank);
    return cumulative_[rank];
  }

 private:
  // exp((logit - best) / temperature): a probability before normalisation.
  double weight(int32_t token) const {
    const double below_best = static_cast<double>(order_key(logits_[token])) - best_logit_;
    return std::exp(below_best / temperature_);
  }

  // Drops all but the top_k best; the rest stays in order of id, so that total() has one order.
  void keep(size_t top_k) {
    if (top_k >= order_.size()) return;
    std::nth_element(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(top_k), order_.end(),
                     Better{logits_});
    order_ = order_.first(top_k);
    std::sort(order_.begin(), order_.end());
  }

  // Pops the heap until `rank` is known: what was popped n-th stands n places before the end.
  void rank_up_to(size_t rank) {
    for (; ranked_ <= rank; ++ranked_) {
      const auto heap_end = order_.end() - static_cast<ptrdiff_t>(ranked_);
      std::pop_heap(order_.begin(), heap_end, Worse{{logits_}});
      cumulative_[ranked_] = weight(*(heap_end - 1)) + (ranked_ > 0 ? cumulative_[ranked_ - 1] : 0);
    }
  }

  std::span<const float> logits_;
  double best_logit_;
  double temperature_;
  std::span<int32_t> order_;  // [unranked, a heap][ranked, the best last]
  std::span<double> cumulative_;
  double total_ = 0;
  size_t ranked_ = 0;
};

}  // namespace

int32_t argmax(std::span<const float> logits) {
  TROUPE_CHECK(!logits.empty());
  size_t best = 0;
  float best_logit = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > best_logit) {  // never true of a NaN
      best = i;
      best_logit = logits[i];
    }
  }
  return static_cast<int32_t>(best);
}

double log_probability(std::span<const float> logits, int32_t token) {
  TROUPE_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size(), "token {} of {}", token,
               logits.size());
  const double best = logits[argmax(logits)];
  return logits[token] - best - log_sum(logits, best);
}

void top_log_probabilities(std::span<const float> logits, std::span<int32_t> tokens,
                           std::span<float> log_probs) {
  TROUPE_CHECK(tokens.size() <= logits.size() && log_probs.size() == tokens.size());
  if (tokens.empty()) return;
  const Better better{logits};
  size_t found = 0;
  for (int32_t token = 0; token < static_cast<int32_t>(logits.size()); ++token) {
    if (found == tokens.size() && !better(token, tokens.back())) continue;
    size_t place = found < tokens.size() ? found++ : found - 1;
    for (; place > 0 && better(token, tokens[place - 1]); --place)
      tokens[place] = tokens[place - 1];
    tokens[place] = token;
  }
  const double best = logits[tokens[0]];
  const double sum = log_sum(logits, best);
  for (size_t i = 0; i < tokens.size(); ++i)
    log_probs[i] = static_cast<float>(logits[tokens[i]] - best - sum);
}

float penalised(float logit, const Penalties& penalties, int count) {
  logit = logit > 0 ? logit / penalties.repetition : logit * penalties.repetition;
  if (count > 0) logit -= penalties.presence + penalties.frequency * static_cast<float>(count);
  return logit;
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t right = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {high(right) ^ counter[1] ^ key[0], low(right), high(left) ^ counter[3] ^ key[1],
               low(left)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

double uniform(uint64_t seed, uint32_t choice, uint64_t position) {
  const std::array<uint32_t, 4> random =
      philox4x32({low(position), high(position), choice, 0}, {low(seed), high(seed)});
  const uint64_t bits = (uint64_t{random[1]} << 32) | random[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Sampler::Sampler(int64_t vocab_size) : order_(vocab_size), cumulative_(vocab_size) {}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                        uint64_t position) {
  TROUPE_CHECK(logits.size() == order_.size(), "{} logits for a vocabulary of {}", logits.size(),
               order_.size());
  const int32_t best = argmax(logits);
  // Without a finite best logit there is no softmax to sample from.
  if (!(params.temperature > 0) || !std::isfinite(logits[best])) return best;

  RankedTokens ranked(logits, logits[best], params, order_, cumulative_);
  size_t length = ranked.size();
  double mass = ranked.total();
  if (params.top_p < 1) {
    length = 1;
    while (length < ranked.size() && ranked.cumulative(length - 1) < params.top_p * mass) ++length;
    mass = ranked.cumulative(length - 1);
  }
  if (params.min_p > 0) {
    size_t likely = 1;
    while (likely < length && ranked.weight_of(likely) >= params.min_p) ++likely;
    length = likely;
    mass = ranked.cumulative(length - 1);
  }

  const double target = uniform(params.seed, params.choice, position) * mass;
  size_t rank = 0;
  while (rank + 1 < length && ranked.cumulative(rank) <= target) {
    // total() and cumulative() round differently: the walk must not end on an impossible token.
    if (ranked.cumulative(rank + 1) == ranked.cumulative(rank)) break;
    ++rank;
  }
  return ranked.token(rank);
}

}  // namespace troupe::layers
