#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "launcher/commands.h"
#include "launcher/forward_record.h"
#include "launcher/launch.h"
#include "launcher/requests.h"

namespace troupe::launcher {

namespace {

constexpr const char* kText =
    "Once upon a time there was a little boat that wanted to see the sea. Every morning it asked "
    "the river where the water goes, and the river said: down, always down, past 3 mills and 14 "
    "bridges. One day the rope was loose. The boat did not wait for anyone; it went to look.";
constexpr int kTokens = 64;     // of the built-in text
constexpr int kMaxInputs = 16;  // more data-parallel ranks than that do the same work again

// Where bits are not promised, of a token's logits: relative L2 difference in the median. Rounding
// to bf16 in another order may send a token to another expert, hence no limit for the worst.
constexpr double kToleranceFloat32 = 1e-4, kToleranceBfloat16 = 0.08;

int data_parallel_size(const Config& config) { return config.parallel.attn_dp_size(); }

// The built-in text for each data-parallel rank, so that none is idle; each begins elsewhere in it.
std::vector<actors::Request> default_requests(const Config& config, const model::ModelConfig& model,
                                              uint8_t observe) {
  std::vector<int32_t> ids;
  if (const auto tokenizer = find_tokenizer(config.model.model_path)) {
    ids = prompt_tokens({kText, std::nullopt}, &*tokenizer, model, "the built-in text");
  } else {
    for (int i = 1; i <= kTokens; ++i) ids.push_back(static_cast<int32_t>(i % model.vocab_size));
  }
  ids.resize(
      std::min({ids.size(), size_t{kTokens}, static_cast<size_t>(model.max_position_embeddings)}));
  std::vector<actors::Request> requests(std::min(data_parallel_size(config), kMaxInputs));
  for (actors::Request& request : requests) {
    request.prompt = ids;
    request.observe = observe;
    std::ranges::rotate(ids, ids.begin() + 1);
  }
  return requests;
}

ForwardRecord record_forward(const Config& config, const model::ModelConfig& model,
                             const std::vector<actors::Request>& requests, uint8_t observe,
                             ForwardRecord::Keep keep) {
  std::vector<int> tokens;
  for (const actors::Request& request : requests)
    tokens.push_back(static_cast<int>(request.prompt.size()));
  ForwardRecord record(model, operations_of(model, model.num_nextn_predict_layers > 0), tokens,
                       keep);
  run_launch(
      config, model, requests, observe,
      {.on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {},
       .on_observed =
           [&](int input, const actors::Observation& rows, int first_row, int first_position,
               int count) { record.on_observed(input, rows, first_row, first_position, count); }});
  return record;
}

// "attn_tp 4, moe_tp 2": the sizes of a list that are not 1.
std::string sizes_text(const std::vector<std::pair<const char*, int>>& sizes) {
  std::string text;
  for (const auto& [name, size] : sizes)
    if (size > 1) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, size);
  return text;
}

std::string in_brackets(const std::string& text) {
  return text.empty() ? "" : fmt::format(" ({})", text);
}

std::string layout_text(const model::ParallelSizes& s) {
  std::string text = sizes_text({{"attn_tp", s.attn_tp_size},
                                 {"o_proj_tp", s.o_proj_tp_size},
                                 {"dense_tp", s.dense_tp_size},
                                 {"moe_tp", s.moe_tp_size},
                                 {"shared_tp", s.shared_tp_size},
                                 {"embed_tp", s.embed_tp_size},
                                 {"lmhead_tp", s.lmhead_tp_size}});
  if (s.enable_o_proj_alltoall) text += text.empty() ? "o_proj_alltoall" : ", o_proj_alltoall";
  return fmt::format("world {}{}", s.world_size, in_brackets(text));
}

// "layer 3 attention (o_proj, attn_tp 4)": the operation, and what is cut over ranks in it.
std::string describe(const Operation& operation, const model::ParallelSizes& s,
                     const model::ModelConfig& model) {
  const bool mtp = operation.layer == model.num_hidden_layers;
  const std::string layer = mtp ? "MTP layer" : fmt::format("layer {}", operation.layer);
  const auto cut = [](const std::string& what,
                      const std::vector<std::pair<const char*, int>>& sizes) {
    const std::string text = sizes_text(sizes);
    return fmt::format(" ({}{}{})", what, text.empty() ? "" : ", ", text);
  };
  switch (operation.kind) {
    case Operation::Kind::kInput:
      return (mtp ? "MTP input" : "embedding") +
             in_brackets(sizes_text({{"embed_tp", s.embed_tp_size}}));
    case Operation::Kind::kAttention:
      return layer + " attention" +
             cut("o_proj", {{"attn_tp", s.attn_tp_size}, {"o_proj_tp", s.o_proj_tp_size}});
    case Operation::Kind::kGate:
      return layer + " gate";
    case Operation::Kind::kFeedForward:
      return layer + " feed-forward" +
             (model.is_moe_layer(operation.layer)
                  ? cut("experts", {{"moe_ep", s.moe_ep_size()},
                                    {"moe_tp", s.moe_tp_size},
                                    {"shared_tp", s.shared_tp_size}})
                  : cut("down_proj", {{"dense_tp", s.dense_tp_size}}));
    case Operation::Kind::kLogits:
      return (mtp ? "MTP logits" : "logits") +
             in_brackets(sizes_text({{"lmhead_tp", s.lmhead_tp_size}}));
  }
  TROUPE_CHECK(false);
}

// Why bits are not promised; empty when they are. For sizes of row-parallel products that is when
// they do not divide the 16 leaves.
std::string why_without_promise(const Config& config, const model::ParallelLayout& layout) {
  if (!config.runtime.deterministic) return "runtime_config.deterministic is False";
  const model::ParallelSizes& s = layout.sizes();
  std::vector<std::pair<const char*, int>> sizes{{"o_proj_tp", layout.o_proj_tp_size()},
                                                 {"dense_tp", s.dense_tp_size},
                                                 {"moe_tp", s.moe_tp_size},
                                                 {"shared_tp", s.shared_tp_size}};
  std::erase_if(sizes, [](const auto& size) { return layers::kTpLeaves % size.second == 0; });
  return sizes.empty() ? "" : fmt::format("{} does not divide 16", sizes_text(sizes));
}

double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  const double relative = difference == 0 ? 0 : std::sqrt(difference / norm);
  return std::isnan(relative) ? std::numeric_limits<double>::infinity() : relative;
}

bool compare_logits(const ForwardRecord& found, const ForwardRecord& expected, double tolerance) {
  const Matrix<const float> a = found.logits(), b = expected.logits();
  std::vector<double> differences;
  for (int64_t token = 0; token < a.rows; ++token)
    differences.push_back(relative_difference({a.row(token), static_cast<size_t>(a.cols)},
                                              {b.row(token), static_cast<size_t>(b.cols)}));
  std::ranges::sort(differences);
  const double median = differences[differences.size() / 2];
  fmt::print(
      "logits of {} tokens: relative difference {:.2g} in the median (limit {:.2g}), at most "
      "{:.2g}\n",
      a.rows, median, tolerance, differences.back());
  return median <= tolerance;
}

// "token 5", "token 5 of input 2"
std::string place(int token, const std::vector<actors::Request>& requests) {
  size_t input = 0;
  for (; token >= static_cast<int>(requests[input].prompt.size()); ++input)
    token -= static_cast<int>(requests[input].prompt.size());
  return requests.size() == 1 ? fmt::format("token {}", token)
                              : fmt::format("token {} of input {}", token, input);
}

uint8_t observe_bits(const model::ModelConfig& model) {
  using msg::Observe;
  const Observe mtp = model.num_nextn_predict_layers > 0 ? Observe::MtpLogits : Observe::Layers;
  return static_cast<uint8_t>(Observe::Layers | Observe::Router | Observe::Logits | mtp);
}

bool report_bits(const ForwardRecord& found, const ForwardRecord& expected,
                 const model::ParallelSizes& sizes, const model::ModelConfig& model,
                 const std::vector<actors::Request>& requests) {
  if (const auto difference = first_difference(found, expected)) {
    fmt::print("{}: {} of {} tokens differ, first at {}\n",
               describe(difference->operation, sizes, model), difference->tokens,
               found.num_tokens(), place(difference->first_token, requests));
    return false;
  }
  fmt::print("identical: {} operations x {} tokens, {} = world 1\n", found.operations().size(),
             found.num_tokens(), layout_text(sizes));
  return true;
}

}  // namespace

bool verify_command(const VerifyArguments& arguments) {
  Config config = read_config(arguments.config);
  config.trace_dir.clear();  // of two launches
  require_runnable(config);
  if (config.model.force_eplb)
    throw_user_error(
        "model_config.force_eplb: rows are dealt out by rank, so layouts compute different things; "
        "verify without it");
  config.model.next_n = 0;  // the MTP layer runs over the text, nothing is drafted
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const uint8_t observe = observe_bits(model);
  std::vector<actors::Request> requests =
      reading_requests(arguments.text_file, arguments.prompt_ids, config, model, observe);
  if (requests.empty()) requests = default_requests(config, model, observe);
  const int in_flight = std::min(static_cast<int>(requests.size()), data_parallel_size(config));
  config.scheduler.batch_size = std::max(config.scheduler.batch_size, in_flight);

  Config one_rank = config;
  one_rank.parallel = {};
  one_rank.runtime.deterministic = true;
  const model::ParallelSizes& sizes = config.parallel;
  const std::string loose = why_without_promise(config, model::ParallelLayout(sizes, model));
  const auto keep = loose.empty() ? ForwardRecord::Keep::kHashes : ForwardRecord::Keep::kLogits;
  const ForwardRecord found = record_forward(config, model, requests, observe, keep);
  const ForwardRecord expected = record_forward(one_rank, model, requests, observe, keep);
  if (loose.empty()) return report_bits(found, expected, sizes, model, requests);
  fmt::print("{}: bits are not promised, since {}\n", layout_text(sizes), loose);
  return compare_logits(
      found, expected,
      config.model.dtype == ComputeType::kFloat32 ? kToleranceFloat32 : kToleranceBfloat16);
}

}  // namespace troupe::launcher
