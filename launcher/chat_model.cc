#include "launcher/chat_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/prefill_progress.h"
#include "launcher/requests.h"

namespace troupe::launcher {

namespace {

constexpr std::chrono::milliseconds kPollInterval{200};
constexpr auto kRouter = static_cast<uint8_t>(msg::Observe::Router);

std::optional<model::ChatTemplate> find_template(const std::filesystem::path& directory,
                                                 const std::filesystem::path& file) {
  if (!file.empty()) return model::ChatTemplate::of_file(file, directory);
  if (!model::ChatTemplate::exists(directory)) return std::nullopt;
  return model::ChatTemplate::of_checkpoint(directory);
}

}  // namespace

ChatModel::ChatModel(const Config& config, const Options& options)
    : config_(config),
      model_(model::read_model_config(config.model.model_path)),
      tokenizer_(find_tokenizer(config.model.model_path)),
      template_(find_template(config.model.model_path, options.chat_template)),
      outlives_ctrl_c_(options.outlives_ctrl_c),
      expert_counts_(model_.num_hidden_layers) {
  if (!tokenizer_)
    throw_user_error(
        "{}: has no tokenizer.json; a chat needs one (`troupe run --prompt-ids` does "
        "without)",
        config.model.model_path.string());
  config_.scheduler.batch_size = 1;  // one conversation: all of the KV pool is for it
  config_.trace_on_demand = true;
  const Load load{.longest_prompt = model_.max_position_embeddings,
                  .longest_sequence = model_.max_position_embeddings};
  session_.emplace(
      config_, model_, load, kRouter,
      SessionCallbacks{
          .on_tokens =
              [this](int id, std::span<const int32_t> tokens, actors::FinishReason reason) {
                if (id != running_id_) return;
                on_tokens_(tokens);
                finished_ = reason != actors::FinishReason::kNone;
              },
          .on_observed = [this](int, const actors::Observation& rows, int first_row, int,
                                int count) { on_observed(rows, first_row, count); },
          .on_interrupt = [this] { return on_interrupt(); }});
}

int64_t ChatModel::context() const {
  const actors::SchedulerLimits& limits = session_->limits();
  return std::min(limits.max_positions,
                  limits.blocks_per_dp_rank * limits.block_size - 2 * limits.num_drafts);
}

bool ChatModel::on_interrupt() {
  if (!outlives_ctrl_c_ || !session_) return false;
  interrupted_ = true;
  if (running_id_ >= 0 && !finished_) session_->cancel(running_id_);
  return true;
}

LineReader::Beside ChatModel::beside() {
  return {.fd = session_->poll_fd(), .on_ready = [this] {
            interrupted_ = false;
            session_->poll(std::chrono::milliseconds(0));
            return interrupted_;
          }};
}

std::vector<int32_t> ChatModel::encode(const ChatConversation& conversation) const {
  std::vector<int32_t> ids;
  if (conversation.raw) {
    ids = tokenizer_->encode(conversation.raw_text());
  } else {
    model::Conversation turns;
    turns.messages = conversation.template_messages();
    ids = tokenizer_->encode(template_->render(turns), false);
  }
  if (ids.empty()) throw_user_error("nothing was said yet");
  const auto most = static_cast<size_t>(context());
  if (ids.size() >= most)
    throw_user_error(
        "the conversation has {} tokens and the context ends at {}, so this was left out; /reset "
        "starts anew (/save FILE keeps what was said)",
        ids.size(), most);
  return ids;
}

actors::Completion ChatModel::run(actors::Request request) {
  PrefillProgress progress(*session_, std::ssize(request.prompt));
  interrupted_ = finished_ = false;
  // Callbacks come from poll(), not from submit().
  running_id_ = session_->submit(std::move(request));
  const int id = running_id_;
  while (!finished_ || !session_->idle()) {
    session_->poll(kPollInterval);
    progress.update();
  }
  running_id_ = -1;
  actors::Completion completion = session_->completion(id);
  session_->release(id);
  return completion;
}

ChatModel::Answer ChatModel::answer(const ChatConversation& conversation,
                                    const ChatSettings& settings, uint32_t choice,
                                    const std::function<void(std::string_view)>& on_text) {
  Answer answer;
  actors::Request request;
  request.prompt = encode(conversation);
  answer.prompt_tokens = std::ssize(request.prompt);
  settings.apply_to(request);
  request.max_new_tokens =
      static_cast<int>(std::min<int64_t>(request.max_new_tokens, context() - answer.prompt_tokens));
  request.stop_ids.insert(model_.eos_token_ids.begin(), model_.eos_token_ids.end());
  request.choice = choice;
  model::StreamDecoder decoder(*tokenizer_);
  const auto add = [&](const std::string& text) {
    answer.text += text;
    if (!text.empty()) on_text(text);
  };
  on_tokens_ = [&](std::span<const int32_t> tokens) {
    std::string text;
    for (const int32_t token : tokens) text += decoder.push(token);
    add(text);
  };
  answer.completion = run(std::move(request));
  add(decoder.finish());
  return answer;
}

std::vector<std::vector<int64_t>> ChatModel::expert_load(const ChatConversation& conversation) {
  actors::Request request;
  request.prompt = encode(conversation);
  request.observe = kRouter;
  for (int layer = 0; layer < model_.num_hidden_layers; ++layer)
    if (model_.is_moe_layer(layer)) expert_counts_[layer].assign(model_.n_routed_experts, 0);
  on_tokens_ = [](std::span<const int32_t>) {};
  run(std::move(request));
  return expert_counts_;
}

void ChatModel::on_observed(const actors::Observation& rows, int first_row, int count) {
  for (int layer = 0; layer < model_.num_hidden_layers; ++layer) {
    if (!model_.is_moe_layer(layer)) continue;
    const Matrix<int32_t> ids = rows.router_ids(layer);
    for (int row = first_row; row < first_row + count; ++row)
      for (int64_t i = 0; i < ids.cols; ++i)
        ++expert_counts_[layer][static_cast<size_t>(ids.row(row)[i])];
  }
}

}  // namespace troupe::launcher
