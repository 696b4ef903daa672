// launcher/chat_model.h: whom a chat speaks to: the words of a checkpoint, and ranks that stay up.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/chat_conversation.h"
#include "launcher/chat_settings.h"
#include "launcher/line_reader.h"
#include "launcher/session.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace troupe::launcher {

class ChatModel {
 public:
  struct Options {
    std::filesystem::path chat_template;  // in place of the checkpoint's; empty: that one
    bool outlives_ctrl_c = false;         // which then ends the answer, not the session
  };
  // Starts the ranks. Errors: those of Session; UserError without a tokenizer.
  ChatModel(const Config& config, const Options& options);

  bool has_chat_template() const { return template_.has_value(); }
  // Tokens that a conversation may have, the answer among them: the model's, or what the KV pool of
  // a rank holds.
  int64_t context() const;

  struct Answer {
    std::string text;
    actors::Completion completion;
    int64_t prompt_tokens = 0;
  };
  // What comes next. `choice` as in actors::Request; on_text hears the text as it comes, in whole
  // characters. UserError, and nothing done, where the conversation is too long or the template
  // refuses it. Ctrl-C ends the answer with FinishReason::kCancelled.
  Answer answer(const ChatConversation& conversation, const ChatSettings& settings, uint32_t choice,
                const std::function<void(std::string_view)>& on_text);

  // How many times each expert was chosen for the tokens of the conversation, counted by reading it
  // once more: [layer][expert]; layers without experts are empty.
  std::vector<std::vector<int64_t>> expert_load(const ChatConversation& conversation);

  Session& session() { return *session_; }
  LineReader::Beside beside();  // for a reader: watches the ranks

 private:
  std::vector<int32_t> encode(const ChatConversation& conversation) const;
  // Runs a request to its end.
  actors::Completion run(actors::Request request);
  bool on_interrupt();
  void on_observed(const actors::Observation& rows, int first_row, int count);

  Config config_;
  model::ModelConfig model_;
  std::optional<model::Tokenizer> tokenizer_;
  std::optional<model::ChatTemplate> template_;
  bool outlives_ctrl_c_;
  bool interrupted_ = false;
  int running_id_ = -1;
  bool finished_ = false;
  std::function<void(std::span<const int32_t>)> on_tokens_;
  std::vector<std::vector<int64_t>> expert_counts_;
  std::optional<Session> session_;
};

}  // namespace troupe::launcher
