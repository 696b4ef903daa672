#include "launcher/chat_conversation.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/report.h"
#include "model/json_file.h"

namespace troupe::launcher {

namespace {

using nlohmann::ordered_json;
using Message = ChatConversation::Message;

ordered_json to_json(const std::vector<Message>& messages) {
  ordered_json list = ordered_json::array();
  for (const Message& message : messages)
    list.push_back({{"role", message.role}, {"content", message.content}});
  return list;
}

std::string string_of(const nlohmann::json& object, const char* key, const std::string& where) {
  const auto value = object.find(key);
  if (value == object.end() || !value->is_string())
    throw_user_error("{}: \"{}\" must be a string; /save writes such a file", where, key);
  return value->get<std::string>();
}

std::vector<Message> messages_of(const nlohmann::json& object, const char* key,
                                 const std::string& where) {
  std::vector<Message> messages;
  const auto list = object.find(key);
  if (list == object.end()) return messages;
  if (!list->is_array()) throw_user_error("{}: \"{}\" must be a list", where, key);
  for (const nlohmann::json& entry : *list) {
    const std::string here = fmt::format("{}: {}[{}]", where, key, messages.size());
    if (!entry.is_object())
      throw_user_error("{}: expected {{\"role\": ..., \"content\": ...}}", here);
    Message message{string_of(entry, "role", here), string_of(entry, "content", here)};
    if (message.role != "user" && message.role != "assistant")
      throw_user_error("{}: role \"{}\"; expected user or assistant", here,
                       model::printable(message.role));
    messages.push_back(std::move(message));
  }
  return messages;
}

}  // namespace

std::string ChatConversation::raw_text() const {
  std::string text;
  for (const Message& part : parts) text += part.content;
  return text;
}

ordered_json ChatConversation::template_messages() const {
  ordered_json list = ordered_json::array();
  if (!system.empty()) list.push_back({{"role", "system"}, {"content", system}});
  for (ordered_json& message : to_json(messages)) list.push_back(std::move(message));
  return list;
}

std::string ChatConversation::text() const {
  if (raw) return raw_text() + '\n';
  std::string text;
  if (!system.empty()) text += fmt::format("system: {}\n", system);
  for (const Message& message : messages)
    text += fmt::format("{}: {}\n", message.role, message.content);
  return text;
}

void save_chat(const std::filesystem::path& path, const ChatConversation& conversation,
               const ChatSettings& settings) {
  const ordered_json json{{"system", conversation.system},
                          {"messages", to_json(conversation.messages)},
                          {"raw", conversation.raw},
                          {"parts", to_json(conversation.parts)},
                          {"settings", settings.json()}};
  write_json_file(path, nlohmann::json(json));
}

void load_chat(const std::filesystem::path& path, ChatConversation& conversation,
               ChatSettings& settings) {
  const nlohmann::json json = model::read_json_file(path);
  const std::string where = path.string();
  if (!json.is_object())
    throw_user_error("{}: expected an object; /save writes such a file", where);
  if (!json.contains("messages") && !json.contains("parts") && !json.contains("settings"))
    throw_user_error("{}: holds no conversation; /save writes such a file", where);
  const auto raw = json.find("raw");
  if (raw != json.end() && !raw->is_boolean())
    throw_user_error("{}: \"raw\" must be true or false", where);
  ChatSettings read_settings = settings;
  if (const auto found = json.find("settings"); found != json.end())
    read_settings.read(*found, where + ": settings");
  conversation = {.system = json.contains("system") ? string_of(json, "system", where) : "",
                  .messages = messages_of(json, "messages", where),
                  .raw = raw != json.end() && raw->get<bool>(),
                  .parts = messages_of(json, "parts", where)};
  settings = read_settings;
}

}  // namespace troupe::launcher
