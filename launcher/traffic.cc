#include "launcher/traffic.h"

#include <algorithm>

#include "actors/expert_copies.h"

namespace troupe::launcher {
namespace {

constexpr int kFp32 = 4;
constexpr int kId = 4;
// What a rank of an attention group has found for a row: a log-probability and a token, padded.
constexpr int kFoundBytes = 16;

// Ways to choose `count` of `from`.
double choose(int from, int count) {
  if (count > from) return 0;
  double ways = 1;
  for (int i = 0; i < count; ++i) ways *= static_cast<double>(from - i) / (count - i);
  return ways;
}

class Table {
 public:
  Table(const model::ModelConfig& model, const model::ParallelLayout& layout, int element,
        int candidates, const actors::MoeOptions& moe)
      : model_(model),
        layout_(layout),
        sizes_(layout.sizes()),
        element_(element),
        candidates_(candidates),
        moe_(moe),
        hidden_(static_cast<double>(model.hidden_size)) {
    for (int i = 0; i < model.num_hidden_layers; ++i) moe_layers_ += model.is_moe_layer(i);
  }

  std::vector<Traffic> rows() {
    add_embedding();
    add_attention();
    add_mlp("dense MLP", "dense_tp", sizes_.dense_tp_size, model_.num_hidden_layers - moe_layers_);
    if (moe_layers_ > 0) add_moe();
    add_logits();
    return std::move(rows_);
  }

 private:
  // Every rank sends `bytes` per token to each other rank of its group.
  static double to_others(int group_size, double bytes) { return (group_size - 1) * bytes; }
  // Of `bytes` per token each rank of the group wants an equal part.
  static double parts_to_others(int group_size, double bytes) {
    return (group_size - 1) * bytes / group_size;
  }
  double row() const { return hidden_ * element_; }
  double partial_row() const { return hidden_ * kFp32; }

  void add(const Traffic& traffic) {
    if (traffic.group_size > 1 && traffic.layers > 0) rows_.push_back(traffic);
  }

  void add_embedding() {
    const int tp = sizes_.embed_tp_size;
    constexpr int kTableElement = 2;  // rows travel as they are stored: bf16
    add({.stage = "embedding",
         .collective = "all_gather of token ids",
         .axis = "embed_tp",
         .group_size = tp,
         .bytes = to_others(tp, kId)});
    add({.stage = "embedding",
         .collective = "all_to_all of table rows",
         .axis = "embed_tp",
         .group_size = tp,
         .bytes = parts_to_others(tp, hidden_ * kTableElement),
         .is_mean = true});
  }

  // As AttentionActor::project_output.
  void add_attention() {
    const int tp = sizes_.attn_tp_size, o_tp = layout_.o_proj_tp_size();
    const int layers = model_.num_hidden_layers;
    add_layers("attention", "all_gather of normed rows", "attn_tp", tp, layers,
               to_others(tp, row()));
    if (o_tp != tp) {
      const auto width = static_cast<double>(model_.num_attention_heads * model_.v_head_dim);
      add_layers("attention", "all_to_all, heads to rows", "attn_tp", tp, layers,
                 parts_to_others(tp, width * element_));
      add_layers("attention", "all_to_all, rows to inputs of o_proj", "o_proj_tp", o_tp, layers,
                 parts_to_others(o_tp, width * element_));
    }
    add_layers("attention", "reduce_scatter of o_proj, fp32", "o_proj_tp", o_tp, layers,
               to_others(o_tp, partial_row()));
    add_layers("attention", "all_gather after the last layer", "attn_tp", tp, 1,
               to_others(tp, row()));
  }

  void add_layers(std::string_view stage, std::string_view collective, std::string_view axis,
                  int group_size, int layers, double bytes) {
    add({.stage = stage,
         .collective = collective,
         .axis = axis,
         .group_size = group_size,
         .layers = layers,
         .bytes = bytes});
  }

  void add_mlp(std::string_view stage, std::string_view axis, int tp, int layers) {
    add_layers(stage, "all_gather of normed rows", axis, tp, layers, to_others(tp, row()));
    add_layers(stage, "reduce_scatter of down_proj, fp32", axis, tp, layers,
               to_others(tp, partial_row()));
  }

  // Each token of a moe_tp group goes out from every rank of the group, each to its part of the
  // experts; the parts' sums meet in fp32.
  void add_moe() {
    const int tp = sizes_.moe_tp_size;
    const int topk = model_.gate.topk;
    if (model_.n_shared_experts > 0)
      add_mlp("shared experts", "shared_tp", sizes_.shared_tp_size, moe_layers_);
    add_layers("experts", "all_gather of rows and expert ids", "moe_tp", tp, moe_layers_,
               to_others(tp, row() + topk * (per_rank() ? kId + kFp32 : kId)));
    if (moe_.double_routing)
      add_double_routing();
    else
      add_dispatch();
    if (per_rank())
      add_layers("experts", "reduce_scatter of rows, fp32", "moe_tp", tp, moe_layers_,
                 to_others(tp, partial_row()));
    else
      add_layers("experts", "reduce_scatter of top-k rows, fp32", "moe_tp", tp, moe_layers_,
                 to_others(tp, topk * partial_row()));
  }

  bool per_rank() const { return !moe_.deterministic && !moe_.double_routing; }
  double payload() const { return moe_.int8_payload ? hidden_ + kFp32 : row(); }
  double result() const { return sizes_.moe_tp_size > 1 ? partial_row() : row(); }

  void add_to_experts(std::string_view collective, double bytes) {
    add({.stage = "experts",
         .collective = collective,
         .axis = "ep",
         .group_size = sizes_.moe_ep_size(),
         .layers = moe_layers_,
         .bytes = sizes_.moe_tp_size * bytes,
         .is_mean = true});
  }

  void add_dispatch() {
    const int ep = sizes_.moe_ep_size(), topk = model_.gate.topk;
    // Room for a token's on one rank.
    const int ids = std::min(topk, static_cast<int>(layout_.num_physical_experts()) / ep);
    const double others_visited = mean_ranks_visited() * (ep - 1) / ep;
    const bool fp32 = sizes_.moe_tp_size > 1;
    add_to_experts("dispatch",
                   others_visited * (payload() + ids * (per_rank() ? kId + kFp32 : kId)));
    if (per_rank())
      add_to_experts(fp32 ? "combine, a row per rank, fp32" : "combine, a row per rank",
                     others_visited * result());
    else
      add_to_experts(fp32 ? "combine, top-k rows, fp32" : "combine, top-k rows",
                     parts_to_others(ep, topk * result()));
  }

  // The mean over layers, and over the turns in which an expert's copies take tokens.
  double mean_ranks_visited() const {
    constexpr int kTurns = 12;  // 1, 2, 3 and 4 copies come round in them
    const int ep = sizes_.moe_ep_size();
    const int64_t own = layout_.num_physical_experts() / ep;
    const actors::ExpertCopies copies(layout_, model_);
    std::vector<int> rank_of_expert(model_.n_routed_experts);
    double sum = 0, terms = 0;
    for (int layer = 0; layer < model_.num_hidden_layers; ++layer) {
      if (!model_.is_moe_layer(layer)) continue;
      for (int turn = 0; turn < (copies.empty() ? 1 : kTurns); ++turn, ++terms) {
        for (int expert = 0; expert < model_.n_routed_experts; ++expert)
          rank_of_expert[expert] = static_cast<int>(
              (copies.empty() ? expert : copies.physical(layer, expert, turn)) / own);
        sum += launcher::mean_ranks_visited(model_.gate, rank_of_expert, ep);
      }
      if (copies.empty()) break;  // all layers are alike
    }
    return sum / terms;
  }

  // A row for each expert both ways; the counts do not grow with the tokens.
  void add_double_routing() {
    const int ep = sizes_.moe_ep_size(), topk = model_.gate.topk;
    add_to_experts("all_to_all_v to experts", parts_to_others(ep, topk * payload()));
    add_to_experts("all_to_all_v back", parts_to_others(ep, topk * result()));
  }

  void add_logits() {
    const int tp = sizes_.lmhead_tp_size, attn_tp = sizes_.attn_tp_size;
    const auto vocab = static_cast<double>(model_.vocab_size);
    const double kept = std::min<double>(candidates_, vocab / tp);  // by each rank
    const auto add_sampled = [&](std::string_view collective, std::string_view axis, int size,
                                 double bytes) {
      add({.stage = "LM head",
           .collective = collective,
           .axis = axis,
           .group_size = size,
           .bytes = bytes,
           .sampled = true});
    };
    add_sampled("all_gather of normed rows", "lmhead_tp", tp, to_others(tp, row()));
    if (candidates_ == 0)
      add_sampled("all_to_all of logits, fp32", "lmhead_tp", tp,
                  parts_to_others(tp, vocab * kFp32));
    else
      add_sampled("all_to_all of the best logits, fp32", "lmhead_tp", tp,
                  to_others(tp, kept * (kFp32 + kId)));
    add_sampled("all_gather of sampled tokens", "attn_tp", attn_tp,
                to_others(attn_tp, kFoundBytes));
  }

  const model::ModelConfig& model_;
  const model::ParallelLayout& layout_;
  const model::ParallelSizes& sizes_;
  int element_, candidates_;
  const actors::MoeOptions& moe_;
  double hidden_;
  int moe_layers_ = 0;
  std::vector<Traffic> rows_;
};

}  // namespace

double mean_ranks_visited(const layers::TopkGateConfig& gate, std::span<const int> rank_of_expert,
                          int num_ranks) {
  const int groups = gate.num_groups, group_size = gate.num_experts / groups;
  std::vector<std::vector<int>> held(num_ranks, std::vector<int>(groups));  // of each group
  for (int expert = 0; expert < gate.num_experts; ++expert)
    ++held[rank_of_expert[expert]][expert / group_size];
  const double choices =
      choose(groups, gate.topk_groups) * choose(gate.topk_groups * group_size, gate.topk);
  double visited = 0;
  for (const std::vector<int>& here : held) {
    // missing[open][chosen]: ways to open so many groups and choose so many experts, none here.
    std::vector missing(gate.topk_groups + 1, std::vector<double>(gate.topk + 1));
    missing[0][0] = 1;
    for (int group = 0; group < groups; ++group)
      for (int open = gate.topk_groups; open > 0; --open)
        for (int chosen = gate.topk; chosen >= 0; --chosen)
          for (int of_group = 0; of_group <= chosen; ++of_group)
            missing[open][chosen] +=
                missing[open - 1][chosen - of_group] * choose(group_size - here[group], of_group);
    visited += 1 - missing[gate.topk_groups][gate.topk] / choices;
  }
  return visited;
}

std::vector<Traffic> token_traffic(const model::ModelConfig& model,
                                   const model::ParallelLayout& layout, int row_element_bytes,
                                   int candidates, const actors::MoeOptions& moe) {
  return Table(model, layout, row_element_bytes, candidates, moe).rows();
}

int64_t forward_overhead_bytes(const model::ParallelLayout& layout) {
  const model::ParallelSizes& sizes = layout.sizes();
  constexpr int64_t kCount = 4;
  const int64_t world = layout.uses_tensor_parallelism() ? sizes.world_size - 1 : 0;
  const int64_t peers = world + (sizes.embed_tp_size - 1) + (sizes.lmhead_tp_size - 1);
  return sizes.world_size * peers * kCount;
}

}  // namespace troupe::launcher
