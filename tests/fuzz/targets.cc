#include "tests/fuzz/targets.h"

#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "tests/fuzz/target_functions.h"

namespace troupe::fuzz {
namespace {

constexpr Target kTargets[] = {
    {"safetensors", safetensors},
    {"index", index_json},
    {"config", config_json},
    {"tokenizer", tokenizer_json},
    {"tiktoken", tiktoken},
    {"tokenizer_config", tokenizer_config},
    {"chat_template", chat_template},
    {"split_pattern", split_pattern},
    {"split", split_json},
    {"yaml", yaml},
    {"prompts", prompts},
    {"dataset", dataset},
    {"prompt_ids", prompt_ids},
    {"placement", placement},
    {"expert_counts", expert_counts},
    {"arrivals", arrivals},
    {"chat_log", chat_log},
    {"symbols", symbols},
    {"fault", fault},
    {"message", message},
    {"trace", trace},
    {"http", http},
    {"request", request_json},
};

}  // namespace

std::span<const Target> targets() { return kTargets; }

bool run_target(const Target& target, std::span<const std::byte> bytes) {
  const auto one_line = [](const std::exception& error) {
    if (std::strchr(error.what(), '\n') != nullptr) std::abort();
  };
  try {
    target.run(bytes);
    return true;
  } catch (const UserError& error) {
    one_line(error);
  } catch (const RankError& error) {
    one_line(error);
  }
  return false;
}

}  // namespace troupe::fuzz
