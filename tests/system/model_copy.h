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
  // Stores fp8 matrices whose name ends so as the nearest bf16 numbers.
  void round_to_bf16(const std::string& ending) {
    change_tensors(ending, [&](const std::string& name, model::PlainTensor& tensor) {
      const model::PlainValues values = checkpoint_.values(name);
      std::string bytes;
      for (int64_t row = 0; row < tensor.shape[0]; ++row)
        for (int64_t col = 0; col < tensor.cols(); ++col) {
          const uint16_t bits = to_bf16(values.at(row, col)).bits;
          bytes.append(reinterpret_cast<const char*>(&bits), sizeof bits);
        }
      tensor = {"BF16", tensor.shape, bytes};
      tensors().erase(name + "_scale_inv");
    });
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
