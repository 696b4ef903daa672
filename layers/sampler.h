// layers/sampler.h: from logits to a token.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace troupe::layers {

struct SamplingParams {
  float temperature = 0;  // 0: greedy
  int32_t top_k = 0;      // 0: all
  float top_p = 1;        // 1: all
  float min_p = 0;        // 0: all
  uint64_t seed = 0;
  uint32_t choice = 0;  // which of several answers to one request
};

// The index of the largest logit; of equal ones the lowest. A NaN counts as minus infinity.
int32_t argmax(std::span<const float> logits);

// log softmax(logits)[token], sums in fp64.
double log_probability(std::span<const float> logits, int32_t token);

// The tokens.size() largest logits, best first (ties: lower id first), and their log softmax, sums
// in fp64. No more tokens than logits.
void top_log_probabilities(std::span<const float> logits, std::span<int32_t> tokens,
                           std::span<float> log_probs);

// What repeating costs a token that the text has already.
struct Penalties {
  float repetition = 1;  // CTRL (Keskar et al., 2019), as Hugging Face's repetition_penalty
  float presence = 0, frequency = 0;  // as in OpenAI's interface
};
// The logit of a token that is `count` times in the answer, or in the prompt alone (0).
float penalised(float logit, const Penalties& penalties, int count);

// Philox4x32-10, the counter-based generator of Salmon et al., 2011: four random words.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// One number in [0, 1), a pure function of its arguments (Philox with the seed as key): the same
// position of the same request always draws the same number, whatever ran beside it.
double uniform(uint64_t seed, uint32_t choice, uint64_t position);

class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  // The token for absolute position `position`. Greedy at temperature 0. Otherwise: tokens by
  // falling logit (ties: lower id first), the first top_k of them, of those the shortest prefix
  // whose share reaches top_p (of the top_k's probability; never empty), of those the ones that
  // have at least min_p times the best one's probability, renormalised, inverted at uniform(...). A
  // NaN logit is never drawn unless the best is not finite, which is then chosen outright. Does not
  // allocate.
  int32_t sample(std::span<const float> logits, const SamplingParams& params, uint64_t position);

 private:
  std::vector<int32_t> order_;      // [vocab]
  std::vector<double> cumulative_;  // [vocab]
};

}  // namespace troupe::layers
