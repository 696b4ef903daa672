// launcher/chat.h: the conversation at the prompt: what is said, and commands that begin with '/'.
//
// Answers go to stdout as they come, everything else to stderr. Where somebody types, a mistake is
// told and the chat goes on; from a pipe it ends the chat, with the line that is wrong.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/chat_conversation.h"
#include "launcher/chat_model.h"
#include "launcher/chat_settings.h"
#include "launcher/line_reader.h"

namespace troupe::launcher {

class Chat {
 public:
  Chat(ChatModel& model, LineReader& reader, ChatSettings settings, bool raw);

  void run();  // until /quit or the end of input

  static std::vector<std::string_view> command_names();
  static bool takes_file(std::string_view command);

 private:
  struct Command;
  static const std::vector<Command>& commands();

  std::string prompt() const;
  // A line, or several of which all but the last end with a backslash.
  std::optional<std::string> read_input();
  void handle(const std::string& input);
  void run_command(std::string_view input);
  // Says something, unless it is empty, and answers. Nothing is kept of it where that fails.
  void say(const std::string& text);
  void regenerate();
  void print_answer(uint32_t choice);

  void help();
  void reset();
  void set_system(const std::string& text);
  void set(const std::string& arguments);
  void show_stats() const;
  void show_ranks() const;
  void show_experts();
  void toggle_raw();
  void trace(const std::string& arguments);

  ChatModel& model_;
  LineReader& reader_;
  ChatSettings settings_;
  ChatConversation conversation_;
  int lines_ = 0;  // read so far
  bool quit_ = false;
  uint32_t choice_ = 0;  // how often the last answer was made anew
  int answers_ = 0;
  std::optional<ChatModel::Answer> last_;
};

}  // namespace troupe::launcher
