// tests/system/jobs.h: whole runs of `troupe score` and `troupe run` on token ids, and what they
// leave: a dump, a report.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/safetensors.h"
#include "tests/system/troupe_process.h"

namespace troupe::system_tests {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::filesystem::path golden_directory(const std::string& name);
std::filesystem::path tiny_moe();

// A configuration file's content, to which tests add what they are about.
json configuration(const std::filesystem::path& model, int world_size, const std::string& dtype);

// "1,2,3"
std::string joined(const Ids& ids);

// `--log-level error COMMAND --config FILE [--prompt-ids IDS ...]`, FILE with `config` in
// `directory`.
std::vector<std::string> command_line(const std::string& command, const json& config,
                                      const std::vector<Ids>& prompts,
                                      const model::TemporaryDirectory& directory);

// The tensors of a `troupe score --dump`.
class Dump {
 public:
  Dump(const json& config, const std::vector<Ids>& prompts, const std::string& items,
       const TroupeProcess::Environment& environment = {});

  const model::Tensor& tensor(const std::string& name) const;
  const std::map<std::string, model::Tensor, std::less<>>& tensors() const;

 private:
  model::TemporaryDirectory directory_;
  std::unique_ptr<model::SafetensorsFile> file_;
};

// The report of a `troupe run --ignore-eos`.
json generate(const json& config, const std::vector<Ids>& prompts,
              const TroupeProcess::Environment& environment = {});
// Of a report: the tokens of every output.
std::vector<Ids> output_ids(const json& report);

template <class T>
std::vector<T> values(const model::Tensor& tensor) {
  std::vector<T> result(tensor.bytes / sizeof(T));
  if (!result.empty()) std::memcpy(result.data(), tensor.data, tensor.bytes);
  return result;
}

bool same_bytes(const model::Tensor& a, const model::Tensor& b);

// The command line of a command that runs one rank of tiny-moe, with `more` behind it.
std::vector<std::string> tiny_moe_words(const std::string& command, int max_new_tokens,
                                        const std::vector<std::string>& more);

}  // namespace troupe::system_tests
