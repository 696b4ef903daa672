#include "model/tokenizer_section.h"

#include <algorithm>

#include "base/error.h"
#include "model/input_file.h"

namespace troupe::model {

using nlohmann::json;

json read_tokenizer_json_file(const std::filesystem::path& path) {
  constexpr int64_t kMaxJsonValues = int64_t{1} << 23;
  const InputFile file(path);
  int64_t num_values = 0;
  const auto count = [&](int, json::parse_event_t, json&) {
    if (++num_values > kMaxJsonValues)
      throw_user_error("{}: more than {} values; this is no tokenizer", path.string(),
                       kMaxJsonValues);
    return true;
  };
  json content = parse_json(file.text(), path.string(), count);
  file.require_unchanged();
  return content;
}

const json* TokenizerSection::find(std::string_view key) const {
  const auto found = value_.find(key);
  return found == value_.end() || found->is_null() ? nullptr : &*found;
}

const json& TokenizerSection::array(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr || !value->is_array()) fail(key, "must be a list");
  return *value;
}

std::string TokenizerSection::string(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr || !value->is_string()) fail(key, "must be a string");
  return value->get<std::string>();
}

TokenizerSection TokenizerSection::section(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) fail(key, "is missing");
  if (!value->is_object()) fail(key, "must be an object");
  return TokenizerSection(*value, file_, name(key) + ".");
}

std::vector<TokenizerSection> TokenizerSection::sections(std::string_view key) const {
  std::vector<TokenizerSection> all;
  for (const json& value : array(key)) {
    const std::string element = fmt::format("{}[{}]", key, all.size());
    if (!value.is_object()) fail(element, "must be an object");
    all.emplace_back(value, file_, name(element) + ".");
  }
  return all;
}

bool TokenizerSection::flag(std::string_view key) const {
  if (!has(key)) fail(key, "is missing");
  return boolean(key, false);
}

void TokenizerSection::allow(std::initializer_list<std::string_view> keys) const {
  for (const auto& [key, value] : value_.items())
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      fail(printable(key), "is not supported");
}

void TokenizerSection::expect(std::string_view key, std::initializer_list<json> neutral) const {
  const json* value = find(key);
  if (value != nullptr && std::find(neutral.begin(), neutral.end(), *value) == neutral.end())
    fail(key, fmt::format("is {}, which is not supported", printable(value->dump())));
}

AddedToken read_added_token(const TokenizerSection& section, int64_t id) {
  section.allow({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  AddedToken token{.id = static_cast<int32_t>(id),
                   .content = section.string("content"),
                   .single_word = section.flag("single_word"),
                   .lstrip = section.flag("lstrip"),
                   .rstrip = section.flag("rstrip"),
                   .normalized = section.flag("normalized"),
                   .special = section.flag("special")};
  if (token.content.empty() || token.content.size() > AddedTokenSplitter::kMaxContentBytes)
    section.fail("content", fmt::format("has {} bytes; 1 to {} are supported", token.content.size(),
                                        AddedTokenSplitter::kMaxContentBytes));
  return token;
}

}  // namespace troupe::model
