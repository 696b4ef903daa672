// model/chat_template.h: a conversation as the text that the model was trained to continue.
#pragma once

#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace troupe::model {

struct Conversation {
  nlohmann::ordered_json messages;       // [{"role", "content", ...}, ...]
  nlohmann::ordered_json tools;          // a list of definitions, or null
  nlohmann::ordered_json variables;      // more names: {"enable_thinking": true}, or null
  bool add_generation_prompt = true;     // ends with the opening of an answer
  std::time_t now = std::time(nullptr);  // of strftime_now, in local time
};

// The template that comes with a checkpoint. It is Jinja; what is understood is the part of the
// language that the templates of DeepSeek, Kimi, GPT-OSS and Qwen use (model/jinja), rendered as
// the transformers library does (apply_chat_template). Anything else is a UserError that names the
// file, the line and what is not understood.
class ChatTemplate {
 public:
  // DIR/chat_template.jinja, or chat_template of DIR/tokenizer_config.json (of several, "default").
  static ChatTemplate of_checkpoint(const std::filesystem::path& directory);
  static bool exists(const std::filesystem::path& directory);  // whether there is one to read
  // `file`, with the special tokens (bos_token, ...) of DIR/tokenizer_config.json.
  static ChatTemplate of_file(const std::filesystem::path& file,
                              const std::filesystem::path& directory);
  ChatTemplate(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // UserError when the template refuses the conversation, with its words.
  std::string render(const Conversation& conversation) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::model
