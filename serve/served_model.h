// serve/served_model.h: the model that a server answers for, as its endpoints need it.
#pragma once

#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "launcher/config.h"
#include "model/chat_template.h"
#include "model/model_config.h"
#include "model/tokenizer.h"
#include "serve/reply_stream.h"

namespace troupe::serve {

// Constant once built; used by any number of threads.
struct ServedModel {
  // Reads tokenizer and chat template; UserError when there is no tokenizer, or `chat_template` is
  // named and wrong. A checkpoint without a chat template answers no chat.
  ServedModel(const launcher::Config& config, const model::ModelConfig& model,
              const std::string& name, const std::filesystem::path& chat_template);

  std::string name;
  const launcher::Config& config;
  const model::ModelConfig& model;
  model::Tokenizer tokenizer;
  std::optional<model::ChatTemplate> chat;
  std::string no_chat;  // why there is none
  ReplyFormat reply_format;
  // The template shows them to the model; of tools, what it writes as a call can be told too.
  bool knows_reasoning_effort = false, knows_tools = false;
  std::time_t created = std::time(nullptr);
};

}  // namespace troupe::serve
