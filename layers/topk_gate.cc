#include "layers/topk_gate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "layers/exp.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

// The `capacity` best candidates among those offered, best first, in the caller's memory.
// Candidates come with rising ids, so a later one must be strictly better to pass an earlier one.
class BestFirst {
 public:
  BestFirst(const float* scores, int32_t* ids, int capacity)
      : scores_(scores), ids_(ids), capacity_(capacity) {}

  void offer(int32_t id) {
    int place = size_;
    while (place > 0 && scores_[id] > scores_[ids_[place - 1]]) --place;
    if (place == capacity_) return;
    size_ = std::min(size_ + 1, capacity_);
    std::copy_backward(ids_ + place, ids_ + size_ - 1, ids_ + size_);
    ids_[place] = id;
  }

 private:
  const float* scores_;
  int32_t* ids_;
  int capacity_;
  int size_ = 0;
};

// Scores must be comparable: a NaN loses to every number.
float comparable(float score) {
  return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
}

// Working memory of one token, kept by each thread from call to call.
struct Scratch {
  std::vector<float> affinity;      // [num_experts]  s
  std::vector<float> choice;        // [num_experts]  s + bias
  std::vector<float> group_scores;  // [num_groups]
  std::vector<int32_t> groups;      // [topk_groups]

  void resize(const TopkGateConfig& config) {
    affinity.resize(config.num_experts);
    choice.resize(config.num_experts);
    group_scores.resize(config.num_groups);
    groups.resize(config.topk_groups);
  }
};

void sigmoid(std::span<const float> logits, std::span<float> affinity) {
  for (size_t e = 0; e < logits.size(); ++e) affinity[e] = 1 / (1 + exp_f32(-logits[e]));
}

void softmax(std::span<const float> logits, std::span<float> affinity) {
  const float greatest = *std::max_element(logits.begin(), logits.end());
  float sum = 0;
  for (size_t e = 0; e < logits.size(); ++e) {
    affinity[e] = exp_f32(logits[e] - greatest);
    sum += affinity[e];
  }
  for (float& s : affinity) s /= sum;
}

void copy(std::span<const float> logits, std::span<float> affinity) {
  std::copy(logits.begin(), logits.end(), affinity.begin());
}

float group_score(std::span<const float> choice, GroupScore kind) {
  float best = -std::numeric_limits<float>::infinity();
  float second = best;
  for (const float score : choice) {
    second = std::max(second, std::min(best, score));
    best = std::max(best, score);
  }
  return kind == GroupScore::kMax || choice.size() == 1 ? best : best + second;
}

// Fills scratch.groups with the groups that the token may choose from, by rising id.
void choose_groups(const TopkGateConfig& config, Scratch& scratch) {
  const int group_size = config.num_experts / config.num_groups;
  BestFirst best(scratch.group_scores.data(), scratch.groups.data(), config.topk_groups);
  for (int g = 0; g < config.num_groups; ++g) {
    const std::span<const float> members(scratch.choice.data() + g * group_size, group_size);
    scratch.group_scores[g] = comparable(group_score(members, config.group_score));
    best.offer(g);
  }
  std::sort(scratch.groups.begin(), scratch.groups.end());
}

void choose_experts(const TopkGateConfig& config, Scratch& scratch, int32_t* ids) {
  const int group_size = config.num_experts / config.num_groups;
  choose_groups(config, scratch);
  BestFirst best(scratch.choice.data(), ids, config.topk);
  for (const int32_t group : scratch.groups) {
    for (int e = group * group_size; e < (group + 1) * group_size; ++e) best.offer(e);
  }
}

// The first id is the best: no exponent is above 0.
void weigh_by_softmax(const TopkGateConfig& config, std::span<const float> logits,
                      const int32_t* ids, float* weights) {
  float sum = 0;
  for (int k = 0; k < config.topk; ++k) {
    weights[k] = exp_f32(logits[ids[k]] - logits[ids[0]]);
    sum += weights[k];
  }
  for (int k = 0; k < config.topk; ++k) weights[k] /= sum;
}

void weigh(const TopkGateConfig& config, std::span<const float> affinity, const int32_t* ids,
           float* weights) {
  float sum = 0;
  for (int k = 0; k < config.topk; ++k) sum += affinity[ids[k]];
  const float divisor = config.normalize ? sum + 1e-20f : 1;  // all may be close to zero
  for (int k = 0; k < config.topk; ++k) {
    weights[k] = affinity[ids[k]] / divisor * config.routed_scale;
  }
}

void check_config(const TopkGateConfig& config) {
  TROUPE_CHECK(config.num_groups > 0 && config.num_experts > 0 &&
                   config.num_experts % config.num_groups == 0,
               "{} experts in {} groups", config.num_experts, config.num_groups);
  TROUPE_CHECK(config.topk_groups > 0 && config.topk_groups <= config.num_groups, "{} of {} groups",
               config.topk_groups, config.num_groups);
  const int eligible = config.num_experts / config.num_groups * config.topk_groups;
  TROUPE_CHECK(config.topk > 0 && config.topk <= eligible, "{} of {} experts", config.topk,
               eligible);
}

}  // namespace

void topk_gate(const TopkGateConfig& config, Matrix<const float> logits,
               std::span<const float> bias, Matrix<int32_t> topk_ids, Matrix<float> topk_weights) {
  check_config(config);
  const size_t num_experts = static_cast<size_t>(config.num_experts);
  TROUPE_CHECK(logits.cols == config.num_experts && (bias.empty() || bias.size() == num_experts),
               "logits [{}, {}], bias [{}] for {} experts", logits.rows, logits.cols, bias.size(),
               config.num_experts);
  TROUPE_CHECK(topk_ids.rows == logits.rows && topk_ids.cols == config.topk &&
                   topk_weights.rows == logits.rows && topk_weights.cols == config.topk,
               "ids [{}, {}], weights [{}, {}] for {} tokens", topk_ids.rows, topk_ids.cols,
               topk_weights.rows, topk_weights.cols, logits.rows);
  const bool softmax_of_chosen = config.score == ScoreFunction::kSoftmaxOfChosen;
  const auto score = softmax_of_chosen                         ? copy
                     : config.score == ScoreFunction::kSigmoid ? sigmoid
                                                               : softmax;
  const auto weigh_chosen = softmax_of_chosen ? weigh_by_softmax : weigh;
  parallel_for(logits.rows, row_grain(16 * logits.cols), [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    scratch.resize(config);
    for (int64_t t = begin; t < end; ++t) {
      score({logits.row(t), num_experts}, scratch.affinity);
      for (size_t e = 0; e < num_experts; ++e) {
        scratch.choice[e] = comparable(scratch.affinity[e] + (bias.empty() ? 0 : bias[e]));
      }
      choose_experts(config, scratch, topk_ids.row(t));
      weigh_chosen(config, scratch.affinity, topk_ids.row(t), topk_weights.row(t));
    }
  });
}

}  // namespace troupe::layers
