// tests/system/model_copy.h: a model directory with something changed in it.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/model/plain_checkpoint.h"

namespace troupe::system_tests {

// Change `config` and `tensors`, then write().
class ModelCopy {
 public:
  explicit ModelCopy(const std::filesystem::path& original)
      : config(nlohmann::json::parse(model::read_file(original / "config.json"))),
        checkpoint_(original) {}

  nlohmann::json config;  // config.json

  // Calls change(name, tensor) for every tensor whose name ends so; there is at least one.
  template <class Change>
  void change_tensors(const std::string& ending, const Change& change) {
    int changed = 0;
    for (auto& [name, tensor] : checkpoint_.tensors) {
      if (!name.ends_with(ending)) continue;
      change(name, tensor);
      ++changed;
    }
    EXPECT_GT(changed, 0) << ending;
  }
  std::map<std::string, model::PlainTensor>& tensors() { return checkpoint_.tensors; }

  // config.json and model.safetensors in a directory that lives as long as this.
  std::filesystem::path write() {
    directory_.write("config.json", config.dump());
    checkpoint_.write_to(directory_.path());
    return directory_.path();
  }
  const model::TemporaryDirectory& directory() const { return directory_; }

 private:
  model::PlainCheckpoint checkpoint_;
  model::TemporaryDirectory directory_;
};

}  // namespace troupe::system_tests
