#include "launcher/prompts.h"

#include <charconv>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "base/memory.h"
#include "model/input_file.h"
#include "model/json_file.h"

namespace troupe::launcher {
namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{64} << 20;
constexpr size_t kMaxLinesBytes = size_t{1} << 30;

json read_json(const std::filesystem::path& file) {
  const model::InputFile input(file);
  if (input.size() > kMaxFileBytes) {
    throw_user_error("{}: {} bytes; a prompt file has at most {}", file.string(), input.size(),
                     kMaxFileBytes);
  }
  json content = model::parse_json(input.text(), file.string());
  input.require_unchanged();
  return content;
}

Prompt to_prompt(const json& entry, const std::string& where) {
  if (entry.is_string()) return {.text = entry.get<std::string>(), .ids = {}};
  if (!entry.is_object()) {
    throw_user_error("{}: expected a string or {{\"text\": \"...\"}}, got {}", where,
                     entry.type_name());
  }
  const auto text = entry.find("text");
  if (text == entry.end()) throw_user_error("{}: has no \"text\"", where);
  if (!text->is_string()) {
    throw_user_error("{}: \"text\" is {}, expected a string", where, text->type_name());
  }
  return {.text = text->get<std::string>(), .ids = {}};
}

// "" where the entry has none.
std::string text_of(const json& entry, const char* key, const std::string& where) {
  const auto text = entry.find(key);
  if (text == entry.end()) return "";
  if (!text->is_string())
    throw_user_error("{}: \"{}\" is {}, expected a string", where, key, text->type_name());
  return text->get<std::string>();
}

Prompt to_context_and_input(const json& entry, const std::string& where) {
  if (!entry.is_object())
    throw_user_error("{}: expected {{\"context\": \"...\", \"input\": \"...\"}}, got {}", where,
                     entry.type_name());
  const std::string context = text_of(entry, "context", where);
  const std::string input = text_of(entry, "input", where);
  if (context.empty() && input.empty())
    throw_user_error("{}: has neither \"context\" nor \"input\"", where);
  const char* between = context.empty() || input.empty() ? "" : "\n\n";
  return {.text = context + between + input, .ids = {}};
}

// One JSON value a line; empty lines do not count.
std::vector<Prompt> read_lines(const std::filesystem::path& file,
                               Prompt (*to)(const json& entry, const std::string& where)) {
  const model::InputFile input(file);
  if (input.size() > kMaxLinesBytes)
    throw_user_error("{}: {} bytes; a file of prompts has at most {}", file.string(), input.size(),
                     kMaxLinesBytes);
  const std::string_view content = input.text();
  std::vector<Prompt> prompts;
  int line = 1;
  for (size_t begin = 0; begin < content.size(); ++line) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view text = content.substr(begin, end - begin);
    begin = end + 1;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", file.string(), line);
    prompts.push_back(to(model::parse_json(text, where), where));
  }
  input.require_unchanged();
  if (prompts.empty()) throw_user_error("{}: has no prompts", file.string());
  return prompts;
}

int32_t parse_id(std::string_view text, std::string_view word) {
  const auto not_space = [&](size_t at) { return at == std::string_view::npos ? 0 : at; };
  word.remove_prefix(not_space(word.find_first_not_of(' ')));
  word = word.substr(0, word.find_last_not_of(' ') + 1);
  int32_t id = 0;
  const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
  if (word.empty() || error != std::errc{} || stop != word.data() + word.size() || id < 0) {
    throw_user_error("token ids \"{}\": \"{}\" is no number from 0 to {}; write ids as 1,2,3",
                     model::printable(text), model::printable(word), INT32_MAX);
  }
  return id;
}

}  // namespace

std::vector<Prompt> read_prompt_file(const std::filesystem::path& file) {
  const json document = read_json(file);
  if (!document.is_array()) return {to_prompt(document, file.string())};
  if (document.empty()) throw_user_error("{}: the list has no prompts", file.string());
  std::vector<Prompt> prompts;
  for (size_t i = 0; i < document.size(); ++i) {
    prompts.push_back(to_prompt(document[i], fmt::format("{}: prompt {}", file.string(), i)));
  }
  return prompts;
}

std::vector<Prompt> read_dataset(const std::string& dataset, const std::filesystem::path& path) {
  if (dataset.ends_with(".jsonl")) return read_lines(dataset, to_prompt);
  const bool benchmark = dataset == "LongBench" || dataset == "InfiniteBench";
  if (!benchmark && dataset != "default")
    throw_user_error(
        "data_config.dataset \"{}\": expected default, LongBench, InfiniteBench or a file that "
        "ends "
        "in .jsonl",
        model::printable(dataset));
  if (std::filesystem::is_directory(path))
    throw_user_error("data_config.dataset_path {}: is a directory; name a file in it",
                     path.string());
  if (benchmark) return read_lines(path, to_context_and_input);
  return path.extension() == ".jsonl" ? read_lines(path, to_prompt) : read_prompt_file(path);
}

std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    ids.push_back(parse_id(text, std::string_view(text).substr(begin, comma - begin)));
    begin = comma + 1;
  }
  return ids;
}

}  // namespace troupe::launcher
