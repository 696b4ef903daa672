#include "model/deepseek.h"

#include "base/error.h"

namespace troupe::model {
namespace {

using layers::LeafRange;

// A matrix that is cut into leaves only where its inputs are sharded.
LeafRange one_leaf(int64_t cols) { return LeafRange{.k_total = cols}; }

// Rank `s` is always a holder of shard s (model/weight_builder.h), so what the layout says of rank
// s it says of shard s.
class DeepseekWeights {
 public:
  DeepseekWeights(const ModelConfig& config, const ParallelLayout& layout, WeightBuilder& builder)
      : config_(config), layout_(layout), sizes_(layout.sizes()), builder_(builder) {}

  ModelWeights model(bool with_mtp) {
    ModelWeights weights;
    weights.embed = embedding(kEmbedding);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer)
      weights.layers.push_back(decoder_layer(layer));
    weights.final_norm = norm("model.norm.weight", config_.hidden_size);
    weights.lm_head = head(config_.tie_word_embeddings ? kEmbedding : "lm_head.weight");
    if (with_mtp) weights.mtp = mtp(weights);
    return weights;
  }

 private:
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";
  static std::string layer_prefix(int layer) { return fmt::format("model.layers.{}.", layer); }

  LayerWeights decoder_layer(int layer) {
    const size_t before = builder_.held_bytes();
    const std::string prefix = layer_prefix(layer);
    LayerWeights weights;
    weights.input_norm = norm(prefix + "input_layernorm.weight", config_.hidden_size);
    weights.attention = attention(prefix + "self_attn.");
    weights.post_attention_norm =
        norm(prefix + "post_attention_layernorm.weight", config_.hidden_size);
    if (config_.is_moe_layer(layer)) {
      weights.moe = moe(prefix + "mlp.");
    } else {
      weights.dense = mlp(prefix + "mlp.", config_.intermediate_size, sizes_.dense_tp_size);
    }
    weights.bytes = builder_.held_bytes() - before;
    return weights;
  }

  AttentionWeights attention(const std::string& prefix) {
    const int64_t all_heads = config_.num_attention_heads;
    const int64_t query_width = all_heads * config_.qk_head_dim();
    AttentionWeights attention;
    MlaWeights& weights = attention.mla.emplace();
    if (config_.q_lora_rank > 0) {
      weights.q_a =
          replicated(linear(prefix + "q_a_proj.weight", config_.q_lora_rank, config_.hidden_size));
      weights.q_a_norm = norm(prefix + "q_a_layernorm.weight", config_.q_lora_rank);
      weights.q_b =
          query_of_heads(linear(prefix + "q_b_proj.weight", query_width, config_.q_lora_rank));
    } else {
      weights.q_b =
          query_of_heads(linear(prefix + "q_proj.weight", query_width, config_.hidden_size));
    }
    weights.kv_a = replicated(
        linear(prefix + "kv_a_proj_with_mqa.weight", config_.kv_width(), config_.hidden_size));
    weights.kv_a_norm = norm(prefix + "kv_a_layernorm.weight", config_.kv_lora_rank);
    add_kv_b(prefix + "kv_b_proj.weight", weights);
    attention.o = row_parallel(
        linear(prefix + "o_proj.weight", config_.hidden_size, all_heads * config_.v_head_dim),
        layout_.o_proj_tp_size());
    return attention;
  }

  // Per head, kv_b holds nope rows that make keys and v rows that make values of the latent.
  void add_kv_b(const std::string& name, MlaWeights& weights) {
    const int64_t nope = config_.qk_nope_head_dim;
    const int64_t head_rows = nope + config_.v_head_dim;
    const TensorSpec kv_b =
        linear(name, config_.num_attention_heads * head_rows, config_.kv_lora_rank);
    const int64_t heads = layout_.heads(0).size();
    for (int64_t i = 0; i < heads; ++i) {
      const auto first_row = [&](int shard) {
        return (layout_.heads(shard).begin + i) * head_rows;
      };
      weights.w_uk.push_back(builder_.transposed(sizes_.attn_tp_size, [&](int shard) {
        return MatrixPart{kv_b, {first_row(shard), first_row(shard) + nope}};
      }));
      weights.w_uv.push_back(builder_.dequantized(sizes_.attn_tp_size, [&](int shard) {
        return MatrixPart{kv_b, {first_row(shard) + nope, first_row(shard) + head_rows}};
      }));
    }
  }

  MoeWeights moe(const std::string& prefix) {
    MoeWeights weights;
    weights.gate = replicated({prefix + "gate.weight", TensorKind::kUnquantized,
                               config_.n_routed_experts, config_.hidden_size});
    if (config_.gate_has_bias)
      weights.gate_bias = builder_.vector({prefix + "gate.e_score_correction_bias",
                                           TensorKind::kBias, 1, config_.n_routed_experts});
    const Range experts = layout_.experts(builder_.world_rank());
    for (int64_t expert = experts.begin; expert < experts.end; ++expert)
      weights.experts.push_back(mlp(fmt::format("{}experts.{}.", prefix, expert),
                                    config_.moe_intermediate_size,
                                    {sizes_.moe_tp_size, sizes_.world_size}));
    if (config_.n_shared_experts > 0)
      weights.shared = mlp(prefix + "shared_experts.", config_.shared_intermediate_size(),
                           sizes_.shared_tp_size);
    return weights;
  }

  // A tensor-parallel cut, and how many ranks apart two holders of one shard stand. An expert is
  // held by one rank alone whatever its cut: there the distance is the world.
  struct Cut {
    Cut(int tp) : Cut(tp, tp) {}
    Cut(int tp, int holders) : tp_size(tp), holder_distance(holders) {}
    int tp_rank(int shard) const { return shard % tp_size; }
    int tp_size, holder_distance;
  };

  MlpWeights mlp(const std::string& prefix, int64_t width, Cut cut) {
    const TensorSpec gate = linear(prefix + "gate_proj.weight", width, config_.hidden_size);
    const TensorSpec up = linear(prefix + "up_proj.weight", width, config_.hidden_size);
    MlpWeights weights;
    weights.gate_up = builder_.matrix(cut.holder_distance, [&](int shard) {
      const Range rows = ParallelLayout::columns(width, cut.tp_rank(shard), cut.tp_size);
      return MatrixSpec{{{gate, rows}, {up, rows}}, one_leaf(config_.hidden_size)};
    });
    weights.down =
        row_parallel(linear(prefix + "down_proj.weight", config_.hidden_size, width), cut);
    return weights;
  }

  MtpWeights mtp(const ModelWeights& main) {
    const int layer = config_.num_hidden_layers;
    const int64_t hidden = config_.hidden_size;
    const std::string prefix = layer_prefix(layer);
    const std::string embed_name = prefix + "embed_tokens.weight";
    const std::string head_name = prefix + "shared_head.head.weight";
    MtpWeights weights;
    weights.embed = builder_.has(embed_name) ? embedding(embed_name) : main.embed;
    weights.enorm = norm(prefix + "enorm.weight", hidden);
    weights.hnorm = norm(prefix + "hnorm.weight", hidden);
    weights.eh_proj =
        replicated({prefix + "eh_proj.weight", TensorKind::kUnquantized, hidden, 2 * hidden});
    weights.layer = decoder_layer(layer);
    weights.head_norm = norm(prefix + "shared_head.norm.weight", hidden);
    weights.head = builder_.has(head_name) ? head(head_name) : main.lm_head;
    return weights;
  }

  static TensorSpec linear(const std::string& name, int64_t rows, int64_t cols) {
    return {name, TensorKind::kLinear, rows, cols};
  }

  std::span<const float> norm(const std::string& name, int64_t width) {
    return builder_.vector({name, TensorKind::kNorm, 1, width});
  }

  Embedding embedding(const std::string& name) {
    return builder_.embedding(
        {name, TensorKind::kEmbedding, config_.vocab_size, config_.hidden_size},
        sizes_.embed_tp_size, [&](int shard) { return layout_.vocab_rows(shard); });
  }

  PackedMatrix head(const std::string& name) {
    const TensorSpec tensor{name, TensorKind::kUnquantized, config_.vocab_size,
                            config_.hidden_size};
    return builder_.matrix(sizes_.lmhead_tp_size, [&](int shard) {
      return MatrixSpec{{{tensor, layout_.vocab_columns(shard)}}, one_leaf(tensor.cols)};
    });
  }

  PackedMatrix replicated(const TensorSpec& tensor) {
    return builder_.matrix(1, [&](int) {
      return MatrixSpec{{{tensor, {0, tensor.rows}}}, one_leaf(tensor.cols)};
    });
  }

  PackedMatrix query_of_heads(const TensorSpec& tensor) {
    const int64_t width = config_.qk_head_dim();
    return builder_.matrix(sizes_.attn_tp_size, [&](int shard) {
      const Range heads = layout_.heads(shard);
      return MatrixSpec{{{tensor, {heads.begin * width, heads.end * width}}},
                        one_leaf(tensor.cols)};
    });
  }

  PackedMatrix row_parallel(const TensorSpec& tensor, Cut cut) {
    return builder_.matrix(cut.holder_distance, [&](int shard) {
      return MatrixSpec{{{tensor, {0, tensor.rows}}},
                        ParallelLayout::leaves(tensor.cols, cut.tp_rank(shard), cut.tp_size)};
    });
  }

  const ModelConfig& config_;
  const ParallelLayout& layout_;
  const ParallelSizes& sizes_;
  WeightBuilder& builder_;
};

}  // namespace

ModelWeights build_deepseek(const ModelConfig& config, const ParallelLayout& layout, bool with_mtp,
                            WeightBuilder& builder) {
  return DeepseekWeights(config, layout, builder).model(with_mtp);
}

}  // namespace troupe::model
