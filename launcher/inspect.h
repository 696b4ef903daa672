// launcher/inspect.h: what a checkpoint is, for people and for programs.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "launcher/config.h"
#include "launcher/rank_memory.h"
#include "model/inventory.h"
#include "model/model_config.h"

namespace troupe::launcher {

struct Inspection {
  std::filesystem::path directory;
  model::ModelConfig model;
  model::Inventory inventory = {};
  std::string tokenizer = {};  // the file it is read from; empty without
  bool has_chat_template = false;
  struct Layout {
    Config config;
    LaunchMemory memory;
  };
  std::optional<Layout> layout = {};  // what ranks would need, where one was asked for
};

// Reads config.json, the headers of safetensors files if there are any, and for a layout what
// `troupe check` reads; its model_path is `directory`. No tensor is read. UserError where the
// directory or the layout is wrong.
Inspection inspect(const std::filesystem::path& directory, const std::filesystem::path& layout);

std::string inspection_text(const Inspection& inspection);
// {"directory", "model_type", "parameters", "bytes", "types", "attention", "experts", "layers",
// "tokenizer", "layout"}: docs/models.md lists the keys.
nlohmann::ordered_json inspection_json(const Inspection& inspection);

}  // namespace troupe::launcher
