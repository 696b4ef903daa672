// tests/system/qwen3_moe_reference.h: Qwen3-MoE written down a second time, plainly and in double,
// from the formulas of Hugging Face's transformers, models/qwen3_moe/modeling_qwen3_moe.py, and a
// checkpoint of random weights for it. There is no golden of this family.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/system/jobs.h"

namespace troupe::system_tests {

struct Qwen3MoeSizes {
  int hidden = 64, layers = 3, heads = 8, kv_heads = 2, head_dim = 24;
  int experts = 16, topk = 4, expert_width = 40, vocab = 120;
  bool norm_topk_prob = true, tie_word_embeddings = false;
  double rope_theta = 1e6, rms_norm_eps = 1e-6;

  json config() const;  // config.json
};

using Vector = std::vector<double>;

class Qwen3MoeReference {
 public:
  // Random weights, rounded to bf16.
  explicit Qwen3MoeReference(const Qwen3MoeSizes& sizes);

  // config.json and model.safetensors.
  void write(const std::filesystem::path& directory) const;
  void set_ones(const std::string& tensor);

  struct Forward {
    std::vector<Vector> logits;                         // [tokens][vocab]
    std::vector<std::vector<std::vector<int>>> routes;  // [layer][token] experts, best first
    double router_margin = 1;  // smallest relative distance of a chosen and an unchosen score
  };
  Forward forward(const Ids& tokens) const;

 private:
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  void add(const std::string& name, std::vector<int64_t> shape, double deviation, double mean = 0);
  Vector linear(const std::string& name, const Vector& x) const;
  Vector norm(const std::string& name, const Vector& x) const;
  void rotate(Vector& head, int position) const;
  Vector head_of(const std::string& norm_name, const Vector& all, int head, int position) const;
  std::vector<Vector> attention(const std::string& prefix, const std::vector<Vector>& x) const;
  Vector moe(const std::string& prefix, const Vector& x, std::vector<int>& route,
             double& margin) const;

  Qwen3MoeSizes sizes_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace troupe::system_tests
