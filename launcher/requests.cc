#include "launcher/requests.h"

#include "base/error.h"

namespace troupe::launcher {

std::optional<model::Tokenizer> find_tokenizer(const std::filesystem::path& model_path) {
  if (!std::filesystem::exists(model_path / "tokenizer.json")) return std::nullopt;
  return model::Tokenizer(model_path);
}

std::vector<int32_t> prompt_tokens(const Prompt& prompt, const model::Tokenizer* tokenizer,
                                   const model::ModelConfig& model, const std::string& name) {
  std::vector<int32_t> ids;
  if (prompt.ids) {
    ids = *prompt.ids;
  } else {
    if (tokenizer == nullptr)
      throw_user_error("{}: the model directory has no tokenizer.json; give --prompt-ids instead",
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

}  // namespace troupe::launcher
