// model/tokenizer_section.h: JSON of a tokenizer's files, of which nothing is passed over.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "model/added_tokens.h"
#include "model/json_file.h"

namespace troupe::model {

// Ids lie in [0, kMaxTokenId]; the largest published vocabularies have 2^18 tokens.
inline constexpr int32_t kMaxTokenId = 1 << 24;

// A file of at most 2^23 values; the largest published tokenizer.json has a million.
nlohmann::json read_tokenizer_json_file(const std::filesystem::path& path);

// A JSON object of which every key is accounted for.
class TokenizerSection : public JsonObject {
 public:
  TokenizerSection(const nlohmann::json& value, std::string file, std::string prefix = "")
      : JsonObject(value, file, prefix), value_(value), file_(file), prefix_(prefix) {}

  const std::string& file() const { return file_; }
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& array(std::string_view key) const;
  std::string string(std::string_view key) const;
  std::string name(std::string_view key) const { return prefix_ + std::string(key); }
  TokenizerSection section(std::string_view key) const;
  std::vector<TokenizerSection> sections(std::string_view key) const;
  bool flag(std::string_view key) const;  // a boolean that must be there

  void allow(std::initializer_list<std::string_view> keys) const;
  // `key` may be there if it is null or equal to one of the values that change nothing.
  void expect(std::string_view key, std::initializer_list<nlohmann::json> neutral) const;

 private:
  const nlohmann::json& value_;
  std::string file_, prefix_;
};

// An entry of added_tokens or added_tokens_decoder, whose `id` is known.
AddedToken read_added_token(const TokenizerSection& section, int64_t id);

}  // namespace troupe::model
