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

// The tokenizer beside the model; none if the directory has no file of one.
std::optional<model::Tokenizer> find_tokenizer(const std::filesystem::path& model_path);

// Token ids of one prompt: ids as given, or text by the tokenizer's own BOS rule. UserError when
// there is no tokenizer for a text, no token at all, or an id outside the vocabulary.
std::vector<int32_t> prompt_tokens(const Prompt& prompt, const model::Tokenizer* tokenizer,
                                   const model::ModelConfig& model, const std::string& name);

// A prompt's text as what a user says first, in the words and special tokens of the model's chat
// template (or the one in `chat_template`, if that is not empty): prompts given as ids stay as they
// are, the others become ids. The prompts' texts remain those of the user.
void apply_chat_template(std::vector<Prompt>& prompts, const model::Tokenizer* tokenizer,
                         const Config& config, const std::filesystem::path& chat_template);

// A whole file as text; UserError naming it.
std::string read_text_file(const std::filesystem::path& path);

// Texts to read through, not to continue: the file's, if one is given, then each of `prompt_ids`.
std::vector<actors::Request> reading_requests(const std::filesystem::path& text_file,
                                              const std::vector<std::string>& prompt_ids,
                                              const Config& config, const model::ModelConfig& model,
                                              uint8_t observe);

}  // namespace troupe::launcher
