// launcher/chat_conversation.h: what has been said in a chat.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launcher/chat_settings.h"

namespace troupe::launcher {

struct ChatConversation {
  struct Message {
    std::string role, content;  // role: user or assistant

    bool operator==(const Message&) const = default;
  };

  std::string system;             // said before all; empty: nothing
  std::vector<Message> messages;  // user and assistant in turns

  // Without the chat template: one text, continued by whoever is next. A part is what the user
  // typed or what the model wrote.
  bool raw = false;
  std::vector<Message> parts;

  const std::vector<Message>& current() const { return raw ? parts : messages; }
  std::vector<Message>& current() { return raw ? parts : messages; }
  std::string raw_text() const;
  // As model::Conversation has them.
  nlohmann::ordered_json template_messages() const;
  std::string text() const;  // for people
};

// JSON: {"system", "messages", "raw", "parts", "settings"}. UserError naming the file.
void save_chat(const std::filesystem::path& path, const ChatConversation& conversation,
               const ChatSettings& settings);
// Changes both or neither. UserError naming file and key.
void load_chat(const std::filesystem::path& path, ChatConversation& conversation,
               ChatSettings& settings);

}  // namespace troupe::launcher
