#include "base/error.h"
#include "model/chat_template.h"
#include "model/json_file.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/split.h"
#include "model/split_pattern.h"
#include "model/tokenizer.h"
#include "tests/fuzz/target_functions.h"

namespace troupe::fuzz {

namespace fs = std::filesystem;

void safetensors(Bytes bytes) {
  const fs::path directory = directory_with("safetensors", "model.safetensors", bytes);
  const model::Checkpoint checkpoint(directory);
  // Every byte that a tensor claims is there.
  std::byte sum{};
  for (const auto& [name, tensor] : checkpoint.tensors())
    for (size_t i = 0; i < tensor->bytes; ++i) sum ^= tensor->data[i];
  [[maybe_unused]] static volatile std::byte keep;
  keep = sum;
}

void index_json(Bytes bytes) {
  const fs::path directory = directory_with("index", "model.safetensors.index.json", bytes);
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  const uint64_t length = header.size();
  write(directory / "x.safetensors",
        std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + "ab");
  model::Checkpoint{directory};
}

void config_json(Bytes bytes) {
  const fs::path directory = directory_with("config", "config.json", bytes);
  const model::ModelConfig config = model::read_model_config(directory, model::ModelUse::kCheck);
  config.softmax_scale();
  model::ParallelLayout({.world_size = 4, .attn_tp_size = 2, .moe_tp_size = 2}, config);
}

static void encode(const model::Tokenizer& tokenizer, std::string_view text) {
  tokenizer.decode(tokenizer.encode(text), false);
}

constexpr const char* kText = "Hello, it's 1234 <|x|>  \n\u4e2d\u6587 \u00e9!";

void tokenizer_json(Bytes bytes) {
  encode(model::Tokenizer(directory_with("tokenizer", "tokenizer.json", bytes)), kText);
}

void tokenizer_config(Bytes bytes) {
  const fs::path directory = directory_with("tokenizer_config", "tokenizer_config.json", bytes);
  write(directory / "tiktoken.model", "YQ== 0\nYg== 1\nYWI= 2\nIA== 3\n");
  encode(model::Tokenizer(directory), "ab ab");  // all that these four tokens spell
}

void tiktoken(Bytes bytes) {
  const fs::path directory = directory_with("tiktoken", "tiktoken.model", bytes);
  write(directory / "tokenizer_config.json", R"({"tokenizer_class": "TikTokenTokenizer"})");
  encode(model::Tokenizer(directory), kText);
}

void chat_template(Bytes bytes) {
  const fs::path directory = directory_with("chat", "chat_template.jinja", bytes);
  const auto chat = model::ChatTemplate::of_checkpoint(directory);
  model::Conversation conversation;
  conversation.messages = nlohmann::ordered_json::parse(
      R"([{"role": "system", "content": "s"}, {"role": "user", "content": "<u>"},
          {"role": "assistant", "content": "a</think>b", "tool_calls": [{"id": "1", "function":
           {"name": "f", "arguments": {"x": [1, 2.5, null]}}}]}, {"role": "user", "content": ""}])");
  conversation.now = 0;
  chat.render(conversation);
}

void split_pattern(Bytes bytes) {
  try {
    model::split_pattern_to_pcre2(text_of(bytes));
  } catch (const std::invalid_argument& error) {
    throw UserError(error.what());
  }
}

// A manifest, and tensors asked for by names that it may have.
void split_json(Bytes bytes) {
  const fs::path directory = directory_with("split", "split.json", bytes);
  const model::SplitSource source(directory, {}, {}, -1);
  const model::TensorSpec tensor{.name = "a", .rows = 2, .cols = 3};
  if (source.has(tensor.name)) source.type(tensor);
}

}  // namespace troupe::fuzz
