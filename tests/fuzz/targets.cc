#include "tests/fuzz/targets.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "actors/actor.h"
#include "base/error.h"
#include "launcher/config.h"
#include "model/chat_template.h"
#include "model/json_file.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/split_pattern.h"
#include "model/tokenizer.h"

namespace troupe::fuzz {
namespace {

namespace fs = std::filesystem;
using Bytes = std::span<const std::byte>;

std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// A directory of this process, in memory where the system has such a place.
const fs::path& scratch() {
  static const struct Scratch {
    Scratch() {
      const fs::path base =
          ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : fs::temp_directory_path();
      std::string name = (base / "troupe-fuzz-XXXXXX").string();
      if (::mkdtemp(name.data()) == nullptr) std::abort();
      path = name;
    }
    ~Scratch() { fs::remove_all(path); }
    fs::path path;
  } directory;
  return directory.path;
}

// A target's own directory with the bytes in one file of it.
fs::path directory_with(const std::string& target, const char* file, Bytes bytes) {
  const fs::path directory = scratch() / target;
  fs::create_directories(directory);
  write(directory / file, text_of(bytes));
  return directory;
}

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

void encode(const model::Tokenizer& tokenizer, std::string_view text) {
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

void yaml(Bytes bytes) {
  launcher::read_config(directory_with("yaml", "run.yaml", bytes) / "run.yaml", {});
}

void message(Bytes bytes) {
  // As a socket gives them: aligned for every type.
  std::vector<uint64_t> aligned(bytes.size() / sizeof(uint64_t) + 1);
  if (!bytes.empty()) std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const msg::Envelope& envelope = actors::verified(
      {reinterpret_cast<const std::byte*>(aligned.data()), bytes.size()}, "a fuzzer");
  msg::EnvelopeT unpacked;
  envelope.UnPackTo(&unpacked);
}

constexpr Target kTargets[] = {
    {"safetensors", safetensors},
    {"index", index_json},
    {"config", config_json},
    {"tokenizer", tokenizer_json},
    {"tiktoken", tiktoken},
    {"tokenizer_config", tokenizer_config},
    {"chat_template", chat_template},
    {"split_pattern", split_pattern},
    {"yaml", yaml},
    {"message", message},
};

}  // namespace

std::span<const Target> targets() { return kTargets; }

bool run_target(const Target& target, std::span<const std::byte> bytes) {
  const auto one_line = [](const std::exception& error) {
    if (std::strchr(error.what(), '\n') != nullptr) std::abort();
  };
  try {
    target.run(bytes);
    return true;
  } catch (const UserError& error) {
    one_line(error);
  } catch (const RankError& error) {
    one_line(error);
  }
  return false;
}

}  // namespace troupe::fuzz
