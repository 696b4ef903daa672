// `troupe explain`: every value of a configuration and where it came from, then what it comes to.
#include <fmt/format.h>

#include <cstdlib>
#include <utility>

#include "launcher/check.h"
#include "launcher/commands.h"
#include "launcher/config_keys.h"
#include "launcher/rank_memory.h"

namespace troupe::launcher {
namespace {

// The variables that infer.sh turns into --set.
constexpr std::pair<const char*, const char*> kVariables[] = {
    {"WORLD_SIZE", "parallel_config.world_size"},
    {"MODEL_DIR", "model_config.model_path"},
    {"INPUT_MAX_LEN", "data_config.input_truncated_len"},
    {"MAX_NEW_TOKENS", "scheduler_config.max_new_tokens"},
    {"BATCH_SIZE", "scheduler_config.batch_size"},
    {"EXE_MODE", "model_config.exe_mode"},
    {"HCCL_BUFFSIZE", "runtime_config.comm_buffer_mb"},
    {"HCCL_DETERMINISTIC", "runtime_config.deterministic"},
    {"HCCL_OP_EXPANSION_MODE", "runtime_config.comm_mode"},
    {"TOKENIZER_MODE", "--chat"}};

std::string values_text(const Config& config) {
  std::string text = fmt::format("{:<47} {:<28} {}\n", "key", "value", "from");
  for (const Key& key : known_keys()) {
    const auto source = config.sources.find(key.path());
    const bool given = source != config.sources.end();
    std::string value = value_text(key, config);
    std::string from = given ? source->second : "default";
    if (key.derived != nullptr) {
      value = fmt::format("{}", key.derived(config));
      from = given ? from + ", agrees with the other sizes" : "follows from the other sizes";
    } else if (key.field == nullptr) {
      if (!given) continue;
      from += ", has no effect on a CPU";
    }
    text += fmt::format("{:<47} {:<28} {}\n", key.path(), value, from);
  }
  return text;
}

std::string environment_text() {
  std::string text;
  for (const auto& [variable, key] : kVariables)
    if (const char* value = std::getenv(variable); value != nullptr && *value != '\0')
      text += fmt::format("{}={}: infer.sh alone reads it, and sets {}\n", variable, value, key);
  if (const char* isa = std::getenv("TROUPE_ISA"); isa != nullptr)
    text += fmt::format("TROUPE_ISA={}: the instruction set of the kernels\n", isa);
  return text.empty() ? text : "environment\n" + text + "\n";
}

std::string tokens_text(const Config& config, const model::ModelConfig& model) {
  const AssumedLoad assumed = largest_load(config, model);
  const auto limits = scheduler_limits(config, model, assumed.load, 0);
  return fmt::format(
      "tokens   of a data-parallel rank in one step: up to {} of prompts (of {}, {}), and {}\n"
      "         sequences with {} each (1 and drafts); {} rows in all\n\n",
      limits.max_prefill_tokens, assumed.load.longest_prompt, assumed.prompt_source,
      limits.sequences_per_dp_rank(), limits.num_drafts + 1, limits.max_rows());
}

}  // namespace

void explain_command(const ConfigArguments& arguments) {
  const Config config = read_config(arguments);
  const model::ModelConfig model =
      model::read_model_config(config.model.model_path, model::ModelUse::kCheck);
  fmt::print("{}\n{}{}{}", values_text(config), environment_text(), tokens_text(config, model),
             check_report(config, false));
}

}  // namespace troupe::launcher
