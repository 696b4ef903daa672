#include "launcher/layout_table.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <functional>

namespace troupe::launcher {
namespace {

using model::ParallelLayout;
using model::Range;

constexpr int kShownWhole = 16, kShownEnd = 4;  // ranks
constexpr int kPictured = 8;                    // ranks
constexpr size_t kKvHeadsCell = 3;              // shown where heads share them

// "0-7", "3", "none"
std::string range_text(Range range) {
  if (range.size() == 0) return "none";
  if (range.size() == 1) return fmt::format("{}", range.begin);
  return fmt::format("{}-{}", range.begin, range.end - 1);
}

std::string group_text(const std::vector<int>& ranks) {
  const int size = static_cast<int>(ranks.size());
  if (size > 1 && ranks.back() - ranks.front() == size - 1)
    return fmt::format("[{}-{}]", ranks.front(), ranks.back());
  if (size <= 4) return fmt::format("[{}]", fmt::join(ranks, ","));
  return fmt::format("[{},{},...,{}]", ranks[0], ranks[1], ranks.back());
}

// "8 of 128 heads"; of pieces that differ the largest.
std::string part_text(const char* what, int64_t total, int parts) {
  return fmt::format("{} of {} {}", (total + parts - 1) / parts, total, what);
}

struct Axis {
  const char* name;
  int size;
  std::function<std::vector<int>(int rank)> group;
  std::string part;
};

std::vector<Axis> axes(const model::ModelConfig& model, const ParallelLayout& layout) {
  const model::ParallelSizes& s = layout.sizes();
  std::vector<Axis> result;
  const auto add_tp = [&](const char* name, int size, std::string part) {
    result.push_back({name, size, [size](int rank) { return ParallelLayout::tp_group(rank, size); },
                      std::move(part)});
  };
  std::string heads = part_text("heads", model.num_attention_heads, s.attn_tp_size);
  if (model.num_key_value_heads > 0)
    heads +=
        fmt::format(", {} of {} KV heads", layout.kv_heads(0).size(), model.num_key_value_heads);
  add_tp("embed_tp", s.embed_tp_size,
         part_text("rows of the embedding", model.vocab_size, s.embed_tp_size));
  add_tp("attn_tp", s.attn_tp_size, heads);
  add_tp("o_proj_tp", layout.o_proj_tp_size(),
         part_text("inputs of o_proj", model.num_attention_heads * model.v_head_dim,
                   layout.o_proj_tp_size()));
  if (model.num_key_value_heads == 0)
    add_tp("dense_tp", s.dense_tp_size,
           part_text("columns of dense MLPs", model.intermediate_size, s.dense_tp_size));
  if (model.n_shared_experts > 0)
    add_tp("shared_tp", s.shared_tp_size,
           part_text("columns of the shared experts", model.shared_intermediate_size(),
                     s.shared_tp_size));
  if (model.n_routed_experts > 0) {
    add_tp("moe_tp", s.moe_tp_size,
           part_text("columns of an expert", model.moe_intermediate_size, s.moe_tp_size));
    result.push_back({"ep", s.moe_ep_size(), [&](int rank) { return layout.ep_group(rank); },
                      part_text("experts", layout.num_physical_experts(), s.moe_ep_size())});
  }
  add_tp("lmhead_tp", s.lmhead_tp_size,
         part_text("columns of the LM head", model.vocab_size, s.lmhead_tp_size));
  return result;
}

// Each group once, by its first rank.
std::vector<std::vector<int>> groups_of(const Axis& axis, int world_size) {
  std::vector<std::vector<int>> groups;
  for (int rank = 0; rank < world_size; ++rank) {
    std::vector<int> group = axis.group(rank);
    if (group.front() == rank) groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace

std::string bytes_text(double bytes) {
  if (bytes >= 1 << 30) return fmt::format("{:.2f} GiB", bytes / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", bytes / (1 << 20));
  if (bytes >= 1 << 10) return fmt::format("{:.1f} KiB", bytes / (1 << 10));
  return fmt::format("{:.0f} B", bytes);
}

std::string layers_text(const std::vector<size_t>& layer_bytes) {
  std::string out;
  for (size_t first = 0, end = 0; first < layer_bytes.size(); first = end) {
    const size_t bytes = layer_bytes[first];
    while (end < layer_bytes.size() && layer_bytes[end] == bytes) ++end;
    const Range layers{static_cast<int64_t>(first), static_cast<int64_t>(end)};
    out += fmt::format("{}{}: {}", out.empty() ? "" : ", ", range_text(layers),
                       bytes_text(static_cast<double>(bytes)));
  }
  return out;
}

std::string groups_text(const std::vector<std::vector<int>>& groups) {
  std::vector<std::string> shown;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups.size() > 4 && i == 2) {
      shown.push_back("...");
      i = groups.size() - 1;
    }
    shown.push_back(group_text(groups[i]));
  }
  return fmt::format("{}", fmt::join(shown, " "));
}

std::string axis_table(const model::ModelConfig& model, const ParallelLayout& layout) {
  const int world_size = layout.sizes().world_size;
  std::string out =
      fmt::format("\n{:<10} {:>5}  {:<34}  each rank holds\n", "axis", "size", "groups of ranks");
  for (const Axis& axis : axes(model, layout)) {
    const std::string groups =
        axis.size == 1 ? "every rank by itself" : groups_text(groups_of(axis, world_size));
    out += fmt::format("{:<10} {:>5}  {:<34}  {}\n", axis.name, axis.size, groups, axis.part);
  }
  return out;
}

std::string layout_picture(const model::ModelConfig& model, const ParallelLayout& layout) {
  const model::ParallelSizes& s = layout.sizes();
  const int shown = std::min(s.world_size, kPictured);
  std::string out;
  const auto line = [&](const char* name, int tp_size, const auto& cell) {
    out += fmt::format("{:<14}", name);
    for (int rank = 0; rank < shown; ++rank)
      out += fmt::format("{}{:^9}", rank % tp_size == 0 ? "|" : " ", cell(rank));
    // A group that goes on beyond the picture stays open.
    out += shown % tp_size == 0 ? "|" : " ";
    out += shown < s.world_size ? " ...\n" : "\n";
  };
  const auto part = [](int tp_size) {
    return [tp_size](int rank) {
      return tp_size == 1
                 ? "all"
                 : fmt::format("{}/{}", ParallelLayout::tp_rank(rank, tp_size) + 1, tp_size);
    };
  };
  out += "\n";
  line("rank", 1, [](int rank) { return fmt::to_string(rank); });
  line("sequences", s.attn_tp_size,
       [&](int rank) { return fmt::format("DP {}", layout.dp_rank(rank)); });
  line("embedding", s.embed_tp_size, part(s.embed_tp_size));
  line("heads", s.attn_tp_size, [&](int rank) { return range_text(layout.heads(rank)); });
  line("o_proj", layout.o_proj_tp_size(), part(layout.o_proj_tp_size()));
  if (model.num_key_value_heads == 0) line("dense MLP", s.dense_tp_size, part(s.dense_tp_size));
  if (model.n_shared_experts > 0) line("shared experts", s.shared_tp_size, part(s.shared_tp_size));
  if (model.n_routed_experts > 0) {
    line("experts", s.moe_tp_size, [&](int rank) { return range_text(layout.experts(rank)); });
    line("  of each", s.moe_tp_size, part(s.moe_tp_size));
  }
  line("LM head", s.lmhead_tp_size, part(s.lmhead_tp_size));
  return out;
}

std::string rank_table(const model::ModelConfig& model, const ParallelLayout& layout,
                       const LaunchMemory& memory) {
  const bool gqa = model.num_key_value_heads > 0;
  const int world_size = layout.sizes().world_size;
  const auto line = [gqa](const std::vector<std::string>& cells) {
    constexpr int kWidths[] = {5, 4, 8, 8, 8, 14, 14, 10, 10, 10};
    std::string text = fmt::format("{:>{}}", cells[0], kWidths[0]);
    for (size_t i = 1; i < cells.size(); ++i)
      if (gqa || i != kKvHeadsCell) text += fmt::format(" {:>{}}", cells[i], kWidths[i]);
    return text + "\n";
  };
  std::string out = line({"rank", "DP", "heads", "KV heads", "experts", "embedding", "LM head",
                          "weights", "KV cache", "workspace"});
  for (int rank = 0; rank < world_size; ++rank) {
    if (world_size > kShownWhole && rank == kShownEnd) {
      out += fmt::format("{:>5}\n", "...");
      rank = world_size - kShownEnd;
    }
    const RankMemory& of = memory.ranks[rank];
    out += line({fmt::to_string(rank), fmt::to_string(layout.dp_rank(rank)),
                 range_text(layout.heads(rank)), range_text(layout.kv_heads(rank)),
                 range_text(layout.experts(rank)), range_text(layout.vocab_rows(rank)),
                 range_text(layout.vocab_columns(rank)),
                 bytes_text(static_cast<double>(of.private_weights)),
                 bytes_text(static_cast<double>(of.kv_cache)),
                 bytes_text(static_cast<double>(of.workspace))});
  }
  return out;
}

}  // namespace troupe::launcher
