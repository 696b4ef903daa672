// launcher/requests.h: from what the user typed to token ids and requests.
#pragma once

#include <optional>
#include <vector>

#include "actors/scheduler.h"
#include "launcher/config.h"
#include "launcher/prompts.h"
#include "model/model_config.h"
#include "model/tokenizer.h"

namespace troupe::launcher {

// The tokenizer beside the model; none if the directory has no tokenizer.json.
std::optional<model::Tokenizer> find_tokenizer(const std::filesystem::path& model_path);

// Token ids of one prompt: ids as given, or text by the tokenizer's own BOS rule. UserError when
// there is no tokenizer for a text, no token at all, or an id outside the vocabulary.
std::vector<int32_t> prompt_tokens(const Prompt& prompt, const model::Tokenizer* tokenizer,
                                   const model::ModelConfig& model, const std::string& name);

// Texts to read through, not to continue: the file's, if one is given, then each of `prompt_ids`.
std::vector<actors::Request> reading_requests(const std::filesystem::path& text_file,
                                              const std::vector<std::string>& prompt_ids,
                                              const Config& config, const model::ModelConfig& model,
                                              uint8_t observe);

}  // namespace troupe::launcher
