#include "serve/served_model.h"

#include "base/error.h"
#include "launcher/requests.h"
#include "serve/request_fields.h"

namespace troupe::serve {

namespace {

model::Tokenizer read_tokenizer(const std::filesystem::path& directory) {
  auto tokenizer = launcher::find_tokenizer(directory);
  if (!tokenizer)
    throw_user_error("{}: has no tokenizer.json or tiktoken.model; a server needs one",
                     directory.string());
  return std::move(*tokenizer);
}

constexpr const char* kMark = "mark";

// Whether a template shows the model what it is given: what is put in comes out.
bool shows_mark(const model::ChatTemplate& chat, model::Conversation conversation) {
  conversation.messages = {{{"role", "user"}, {"content", "Hi"}}};
  try {
    return chat.render(conversation).find(kMark) != std::string::npos;
  } catch (const UserError&) {
    return false;
  }
}

bool shows_effort(const model::ChatTemplate& chat) {
  model::Conversation conversation;
  conversation.variables = {{"reasoning_effort", kMark}};
  return shows_mark(chat, std::move(conversation));
}

bool shows_tools(const model::ChatTemplate& chat) {
  model::Conversation conversation;
  const Json nothing = {{"type", "object"}, {"properties", Json::object()}};
  const Json function = {{"name", kMark}, {"description", ""}, {"parameters", nothing}};
  conversation.tools = Json::array({{{"type", "function"}, {"function", function}}});
  return shows_mark(chat, std::move(conversation));
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
  knows_reasoning_effort = shows_effort(*chat);
  knows_tools = reply_format.knows_tools() && shows_tools(*chat);
}

}  // namespace troupe::serve
