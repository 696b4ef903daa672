#include "serve/served_model.h"

#include "base/error.h"
#include "serve/request_fields.h"

namespace troupe::serve {

namespace {

model::Tokenizer read_tokenizer(const std::filesystem::path& directory) {
  if (!std::filesystem::exists(directory / "tokenizer.json"))
    throw_user_error("{}: has no tokenizer.json; a server needs one", directory.string());
  return model::Tokenizer(directory);
}

// Whether a template uses a variable: what is put in comes out.
bool shows(const model::ChatTemplate& chat, const char* variable, const Json& value,
           const std::string& mark) {
  model::Conversation conversation;
  conversation.messages = {{{"role", "user"}, {"content", "Hi"}}};
  conversation.variables = {{variable, value}};
  try {
    return chat.render(conversation).find(mark) != std::string::npos;
  } catch (const UserError&) {
    return false;
  }
}

}  // namespace

ServedModel::ServedModel(const launcher::Config& config_in, const model::ModelConfig& model_in,
                         const std::string& name_in, const std::filesystem::path& chat_template)
    : name(name_in),
      config(config_in),
      model(model_in),
      tokenizer(read_tokenizer(config_in.model.model_path)),
      reply_format(ReplyFormat::of(tokenizer)) {
  const std::filesystem::path& directory = config.model.model_path;
  try {
    chat.emplace(chat_template.empty() ? model::ChatTemplate::of_checkpoint(directory)
                                       : model::ChatTemplate::of_file(chat_template, directory));
  } catch (const UserError& error) {
    if (!chat_template.empty()) throw;
    no_chat = error.what();
    return;
  }
  knows_reasoning_effort = shows(*chat, "reasoning_effort", "mark", "mark");
}

}  // namespace troupe::serve
