#include "tests/system/jobs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace troupe::system_tests {
namespace {

// A clean end says nothing.
void run_cleanly(const std::vector<std::string>& arguments,
                 const TroupeProcess::Environment& environment) {
  const Ended ended = run_troupe(arguments, environment);
  if (ended.status != 0 || !ended.err.empty())
    throw std::runtime_error(fmt::format("troupe ended with status {}, signal {}: {}", ended.status,
                                         ended.signal, ended.err));
}

}  // namespace

std::filesystem::path golden_directory(const std::string& name) {
  return model::source_file("tests/goldens/" + name);
}

std::filesystem::path tiny_moe() { return model::source_file("models/tiny-moe"); }

json configuration(const std::filesystem::path& model, int world_size, const std::string& dtype) {
  return {{"model_config", {{"model_path", model.string()}, {"dtype", dtype}}},
          {"data_config", json::object()},
          {"parallel_config", {{"world_size", world_size}}},
          {"scheduler_config", {{"batch_size", 16}, {"max_new_tokens", 24}}},
          {"runtime_config", json::object()}};
}

std::string joined(const Ids& ids) { return fmt::format("{}", fmt::join(ids, ",")); }

std::vector<std::string> command_line(const std::string& command, const json& config,
                                      const std::vector<Ids>& prompts,
                                      const model::TemporaryDirectory& directory) {
  std::vector<std::string> arguments{"--log-level", "error", command, "--config",
                                     directory.write("config.json", config.dump())};
  for (const Ids& prompt : prompts) {
    arguments.push_back("--prompt-ids");
    arguments.push_back(joined(prompt));
  }
  return arguments;
}

Dump::Dump(const json& config, const std::vector<Ids>& prompts, const std::string& items,
           const TroupeProcess::Environment& environment) {
  const std::string path = directory_.path() / "dump.safetensors";
  auto arguments = command_line("score", config, prompts, directory_);
  for (const std::string& word : {std::string("--dump"), path, std::string("--dump-items"), items})
    arguments.push_back(word);
  run_cleanly(arguments, environment);
  file_ = std::make_unique<model::SafetensorsFile>(path);
}

const model::Tensor& Dump::tensor(const std::string& name) const {
  const auto found = tensors().find(name);
  if (found == tensors().end()) throw std::runtime_error("the dump has no " + name);
  return found->second;
}

const std::map<std::string, model::Tensor, std::less<>>& Dump::tensors() const {
  return file_->tensors();
}

json generate(const json& config, const std::vector<Ids>& prompts,
              const TroupeProcess::Environment& environment) {
  const model::TemporaryDirectory directory;
  const std::string path = directory.path() / "report.json";
  auto arguments = command_line("run", config, prompts, directory);
  for (const std::string& word : {std::string("--ignore-eos"), std::string("--json"), path})
    arguments.push_back(word);
  run_cleanly(arguments, environment);
  return json::parse(model::read_file(path));
}

std::vector<Ids> output_ids(const json& report) {
  std::vector<Ids> all;
  for (const json& output : report.at("outputs")) all.push_back(output.at("output_ids"));
  return all;
}

bool same_bytes(const model::Tensor& a, const model::Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes &&
         (a.bytes == 0 || std::memcmp(a.data, b.data, a.bytes) == 0);
}

std::vector<std::string> tiny_moe_words(const std::string& command, int max_new_tokens,
                                        const std::vector<std::string>& more) {
  std::vector<std::string> words{"--log-level",
                                 "error",
                                 command,
                                 "--config",
                                 TROUPE_SOURCE_DIR "/configs/tiny_moe_rank_1.yaml",
                                 "--set",
                                 "model_config.model_path=" + tiny_moe().string(),
                                 "--set",
                                 fmt::format("scheduler_config.max_new_tokens={}", max_new_tokens)};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace troupe::system_tests
