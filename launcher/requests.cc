#include "launcher/requests.h"

#include "base/error.h"
#include "base/memory.h"
#include "model/chat_template.h"
#include "model/input_file.h"
#include "model/tokenizer_file.h"

namespace troupe::launcher {

std::string read_text_file(const std::filesystem::path& path) {
  const model::InputFile file(path);
  std::string text(file.text());
  file.require_unchanged();
  return text;
}

std::optional<model::Tokenizer> find_tokenizer(const std::filesystem::path& model_path) {
  if (model::tokenizer_file_name(model_path).empty()) return std::nullopt;
  return model::Tokenizer(model_path);
}

std::vector<int32_t> prompt_tokens(const Prompt& prompt, const model::Tokenizer* tokenizer,
                                   const model::ModelConfig& model, const std::string& name) {
  std::vector<int32_t> ids;
  if (prompt.ids) {
    ids = *prompt.ids;
  } else {
    if (tokenizer == nullptr)
      throw_user_error(
          "{}: the model directory has no tokenizer.json or tiktoken.model; give --prompt-ids "
          "instead",
          name);
    ids = tokenizer->encode(prompt.text);
  }
  if (ids.empty()) throw_user_error("{}: no tokens; the prompt must not be empty", name);
  for (const int32_t id : ids)
    if (id < 0 || id >= model.vocab_size)
      throw_user_error("{}: token id {} is outside the vocabulary 0 .. {}", name, id,
                       model.vocab_size - 1);
  return ids;
}

void apply_chat_template(std::vector<Prompt>& prompts, const model::Tokenizer* tokenizer,
                         const Config& config, const std::filesystem::path& chat_template) {
  const std::filesystem::path& directory = config.model.model_path;
  if (tokenizer == nullptr)
    throw_user_error("{}: has no tokenizer.json or tiktoken.model; a chat needs one",
                     directory.string());
  const auto chat = chat_template.empty() ? model::ChatTemplate::of_checkpoint(directory)
                                          : model::ChatTemplate::of_file(chat_template, directory);
  const auto limit = static_cast<size_t>(config.data.input_truncated_len);
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].ids) continue;
    model::Conversation conversation;
    conversation.messages = {{{"role", "user"}, {"content", prompts[i].text}}};
    prompts[i].ids = tokenizer->encode(chat.render(conversation), false);
    if (limit > 0 && prompts[i].ids->size() > limit)
      throw_user_error(
          "prompt {}: has {} tokens as a chat; data_config.input_truncated_len {} would cut off "
          "the end of its template",
          i, prompts[i].ids->size(), limit);
  }
}

std::vector<actors::Request> reading_requests(const std::filesystem::path& text_file,
                                              const std::vector<std::string>& prompt_ids,
                                              const Config& config, const model::ModelConfig& model,
                                              uint8_t observe) {
  std::vector<Prompt> inputs;
  if (!text_file.empty()) inputs.push_back({read_text_file(text_file), std::nullopt});
  for (const std::string& ids : prompt_ids) inputs.push_back({"", parse_ids(ids)});
  const auto tokenizer = find_tokenizer(config.model.model_path);
  std::vector<actors::Request> requests(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    requests[i].prompt = prompt_tokens(inputs[i], tokenizer ? &*tokenizer : nullptr, model,
                                       fmt::format("input {}", i));
    requests[i].observe = observe;
  }
  return requests;
}

}  // namespace troupe::launcher
