// layers/topk_gate.h: which experts each token visits, and with what weight.
#pragma once

#include <cstdint>
#include <span>

#include "base/matrix.h"

namespace troupe::layers {

// kSoftmaxOfChosen: logits choose, the softmax is over the chosen (GPT-OSS).
enum class ScoreFunction { kSigmoid, kSoftmax, kSoftmaxOfChosen };
// How a group of experts is scored (n_group > 1): by the sum of its two best choices (noaux_tc,
// DeepSeek-V3) or by its best (group_limited_greedy, DeepSeek-V2).
enum class GroupScore { kTopTwoSum, kMax };

struct TopkGateConfig {  // DeepSeek-V3:
  int num_experts = 0;   // 256
  int topk = 0;          // 8    experts chosen per token
  int num_groups = 1;    // 8    divides num_experts
  int topk_groups = 1;   // 4    groups one token may choose from
  ScoreFunction score = ScoreFunction::kSigmoid;
  GroupScore group_score = GroupScore::kTopTwoSum;
  bool normalize = true;   // divide the chosen weights by their sum (norm_topk_prob)
  float routed_scale = 1;  // 2.5  routed_scaling_factor
};

// Top-k gate of DeepSeek-V2 and V3 (V3 report, section 2.1.2; inference/model.py Gate).
//
//   s = sigmoid(logits), softmax over all experts, or the logits themselves
//   choose the topk largest s + bias inside the topk_groups best groups
//   weight = s of the chosen, divided by their sum where normalize is set, times routed_scale
//                                                      the bias steers, it never weighs
//   kSoftmaxOfChosen: weight = softmax over the chosen logits; normalize and routed_scale say
//   nothing (openai/gpt-oss, gpt_oss/torch/model.py MLPBlock)
// On equal scores the lower expert (or group) id wins: all ranks and all instruction sets choose
// alike. fp32; exp as in layers/exp.h. A NaN score loses to every number; where it must be chosen
// all the same, ids stay in range and distinct, and its weight is NaN (all are, if normalised).
//
//   logits    [tokens, num_experts]        bias         [num_experts], or empty for none
//   topk_ids  [tokens, topk]  out, best first  topk_weights  [tokens, topk]  out, same order
void topk_gate(const TopkGateConfig& config, Matrix<const float> logits,
               std::span<const float> bias, Matrix<int32_t> topk_ids, Matrix<float> topk_weights);

}  // namespace troupe::layers
