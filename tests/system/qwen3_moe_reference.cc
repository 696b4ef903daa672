#include "tests/system/qwen3_moe_reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "base/bf16.h"

namespace troupe::system_tests {
namespace {

Vector softmax(Vector scores) {
  const double greatest = *std::ranges::max_element(scores);
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - greatest);
  for (double& score : scores) score /= sum;
  return scores;
}

void add_to(Vector& sum, const Vector& addend, double weight = 1) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * addend[i];
}

std::string layer_prefix(int layer) { return fmt::format("model.layers.{}.", layer); }

}  // namespace

json Qwen3MoeSizes::config() const {
  return {{"model_type", "qwen3_moe"},
          {"vocab_size", vocab},
          {"hidden_size", hidden},
          {"intermediate_size", 3 * hidden},
          {"moe_intermediate_size", expert_width},
          {"num_hidden_layers", layers},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"head_dim", head_dim},
          {"num_experts", experts},
          {"num_experts_per_tok", topk},
          {"norm_topk_prob", norm_topk_prob},
          {"decoder_sparse_step", 1},
          {"mlp_only_layers", json::array()},
          {"tie_word_embeddings", tie_word_embeddings},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", rms_norm_eps},
          {"rope_theta", rope_theta},
          {"hidden_act", "silu"},
          {"eos_token_id", 1}};
}

Qwen3MoeReference::Qwen3MoeReference(const Qwen3MoeSizes& sizes) : sizes_(sizes) {
  const Qwen3MoeSizes& s = sizes_;
  const double by_hidden = 1 / std::sqrt(s.hidden);
  add("model.embed_tokens.weight", {s.vocab, s.hidden}, 1);
  for (int layer = 0; layer < s.layers; ++layer) {
    const std::string prefix = layer_prefix(layer);
    const int q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    add(prefix + "input_layernorm.weight", {s.hidden}, 0.3, 1);
    add(prefix + "self_attn.q_proj.weight", {q, s.hidden}, by_hidden);
    add(prefix + "self_attn.k_proj.weight", {kv, s.hidden}, by_hidden);
    add(prefix + "self_attn.v_proj.weight", {kv, s.hidden}, by_hidden);
    add(prefix + "self_attn.q_norm.weight", {s.head_dim}, 0.5, 1.5);
    add(prefix + "self_attn.k_norm.weight", {s.head_dim}, 0.5, 1.5);
    add(prefix + "self_attn.o_proj.weight", {s.hidden, q}, 1 / std::sqrt(q));
    add(prefix + "post_attention_layernorm.weight", {s.hidden}, 0.3, 1);
    add(prefix + "mlp.gate.weight", {s.experts, s.hidden}, 2 * by_hidden);
    for (int expert = 0; expert < s.experts; ++expert) {
      const std::string name = fmt::format("{}mlp.experts.{}.", prefix, expert);
      add(name + "gate_proj.weight", {s.expert_width, s.hidden}, 2 * by_hidden);
      add(name + "up_proj.weight", {s.expert_width, s.hidden}, 2 * by_hidden);
      add(name + "down_proj.weight", {s.hidden, s.expert_width}, 1 / std::sqrt(s.expert_width));
    }
  }
  add("model.norm.weight", {s.hidden}, 0.3, 1);
  if (!s.tie_word_embeddings) add("lm_head.weight", {s.vocab, s.hidden}, 3 * by_hidden);
}

void Qwen3MoeReference::add(const std::string& name, std::vector<int64_t> shape, double deviation,
                            double mean) {
  std::minstd_rand random(static_cast<uint32_t>(tensors_.size()) + 1);
  const auto uniform = [&] { return static_cast<double>(random()) / std::minstd_rand::max(); };
  Tensor tensor{std::move(shape), {}};
  const int64_t count =
      std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  for (int64_t i = 0; i < count; ++i) {
    const double value = mean + deviation * std::sqrt(12) * (uniform() - 0.5);
    tensor.values.push_back(round_to_bf16(static_cast<float>(value)));
  }
  tensors_[name] = std::move(tensor);
}

void Qwen3MoeReference::set_ones(const std::string& tensor) {
  std::ranges::fill(tensors_.at(tensor).values, 1.0f);
}

void Qwen3MoeReference::write(const std::filesystem::path& directory) const {
  std::ofstream(directory / "config.json") << sizes_.config().dump();
  std::vector<model::SafetensorsWriter::Entry> entries;
  for (const auto& [name, tensor] : tensors_)
    entries.push_back({name, model::Dtype::kBf16, tensor.shape});
  model::SafetensorsWriter writer(directory / "model.safetensors", entries);
  for (const auto& [name, tensor] : tensors_) {
    std::vector<Bf16> rounded;
    for (const float value : tensor.values) rounded.push_back(to_bf16(value));
    writer.write(name, 0, rounded.data(), std::ssize(rounded));
  }
  writer.finish();
}

Vector Qwen3MoeReference::linear(const std::string& name, const Vector& x) const {
  const Tensor& weight = tensors_.at(name);
  Vector y(static_cast<size_t>(weight.shape[0]));
  for (size_t n = 0; n < y.size(); ++n)
    for (size_t k = 0; k < x.size(); ++k) y[n] += double{weight.values[n * x.size() + k]} * x[k];
  return y;
}

// Qwen3MoeRMSNorm
Vector Qwen3MoeReference::norm(const std::string& name, const Vector& x) const {
  double squares = 0;
  for (const double value : x) squares += value * value;
  const double mean = squares / static_cast<double>(x.size());
  Vector y;
  for (size_t i = 0; i < x.size(); ++i)
    y.push_back(tensors_.at(name).values[i] * x[i] / std::sqrt(mean + sizes_.rms_norm_eps));
  return y;
}

// q * cos + rotate_half(q) * sin, cos and sin of cat(freqs, freqs).
void Qwen3MoeReference::rotate(Vector& head, int position) const {
  const size_t half = head.size() / 2;
  const Vector before = head;
  for (size_t i = 0; i < head.size(); ++i) {
    const double exponent = 2 * static_cast<double>(i % half) / static_cast<double>(head.size());
    const double angle = position / std::pow(sizes_.rope_theta, exponent);
    const double turned = i < half ? -before[i + half] : before[i - half];
    head[i] = before[i] * std::cos(angle) + turned * std::sin(angle);
  }
}

Vector Qwen3MoeReference::head_of(const std::string& norm_name, const Vector& all, int head,
                                  int position) const {
  const auto begin = all.begin() + int64_t{head} * sizes_.head_dim;
  Vector result = norm(norm_name, Vector(begin, begin + sizes_.head_dim));
  rotate(result, position);
  return result;
}

// Qwen3MoeAttention with eager_attention_forward: query head h reads kv head h / (heads /
// kv_heads).
std::vector<Vector> Qwen3MoeReference::attention(const std::string& prefix,
                                                 const std::vector<Vector>& x) const {
  const int heads = sizes_.heads, head_dim = sizes_.head_dim;
  std::vector<Vector> q, k, v, out;
  for (const Vector& row : x) {
    q.push_back(linear(prefix + "q_proj.weight", row));
    k.push_back(linear(prefix + "k_proj.weight", row));
    v.push_back(linear(prefix + "v_proj.weight", row));
  }
  for (int t = 0; t < std::ssize(x); ++t) {
    Vector joined;
    for (int h = 0; h < heads; ++h) {
      const int g = h / (heads / sizes_.kv_heads);
      const Vector query = head_of(prefix + "q_norm.weight", q[t], h, t);
      Vector scores;
      for (int j = 0; j <= t; ++j) {
        const Vector key = head_of(prefix + "k_norm.weight", k[j], g, j);
        scores.push_back(std::inner_product(query.begin(), query.end(), key.begin(), 0.0) /
                         std::sqrt(head_dim));
      }
      const Vector weights = softmax(scores);
      for (int i = 0; i < head_dim; ++i) {
        double sum = 0;
        for (int j = 0; j <= t; ++j) sum += weights[j] * v[j][g * head_dim + i];
        joined.push_back(sum);
      }
    }
    out.push_back(linear(prefix + "o_proj.weight", joined));
  }
  return out;
}

// Qwen3MoeSparseMoeBlock
Vector Qwen3MoeReference::moe(const std::string& prefix, const Vector& x, std::vector<int>& route,
                              double& margin) const {
  const Vector scores = softmax(linear(prefix + "gate.weight", x));
  route.resize(scores.size());
  std::iota(route.begin(), route.end(), 0);
  std::ranges::stable_sort(route, std::greater{}, [&](int expert) { return scores[expert]; });
  margin = std::min(margin, 1 - scores[route[sizes_.topk]] / scores[route[sizes_.topk - 1]]);
  route.resize(sizes_.topk);
  double sum = 0;
  for (const int expert : route) sum += scores[expert];
  Vector out(x.size());
  for (const int expert : route) {
    const std::string name = fmt::format("{}experts.{}.", prefix, expert);
    Vector inner = linear(name + "gate_proj.weight", x);
    const Vector up = linear(name + "up_proj.weight", x);
    for (size_t i = 0; i < inner.size(); ++i) inner[i] *= up[i] / (1 + std::exp(-inner[i]));
    add_to(out, linear(name + "down_proj.weight", inner),
           scores[expert] / (sizes_.norm_topk_prob ? sum : 1));
  }
  return out;
}

Qwen3MoeReference::Forward Qwen3MoeReference::forward(const Ids& tokens) const {
  const Tensor& table = tensors_.at("model.embed_tokens.weight");
  std::vector<Vector> hidden;
  for (const int32_t id : tokens) {
    const auto row = table.values.begin() + int64_t{id} * sizes_.hidden;
    hidden.emplace_back(row, row + sizes_.hidden);
  }
  Forward result;
  for (int layer = 0; layer < sizes_.layers; ++layer) {
    const std::string prefix = layer_prefix(layer);
    std::vector<Vector> normed;
    for (const Vector& row : hidden) normed.push_back(norm(prefix + "input_layernorm.weight", row));
    const std::vector<Vector> attended = attention(prefix + "self_attn.", normed);
    auto& routes = result.routes.emplace_back(hidden.size());
    for (size_t t = 0; t < hidden.size(); ++t) {
      add_to(hidden[t], attended[t]);
      const Vector row = norm(prefix + "post_attention_layernorm.weight", hidden[t]);
      add_to(hidden[t], moe(prefix + "mlp.", row, routes[t], result.router_margin));
    }
  }
  const char* head = sizes_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  for (const Vector& row : hidden)
    result.logits.push_back(linear(head, norm("model.norm.weight", row)));
  return result;
}

}  // namespace troupe::system_tests
