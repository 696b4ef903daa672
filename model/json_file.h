// model/json_file.h: JSON of a checkpoint, read with bounds; every error names file and key.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe::model {

// Text of a file inside an error message: one line, control characters replaced, cut when long.
std::string printable(std::string_view text);

// Parses JSON nested at most 64 deep. `where` names it in errors (UserError). `on_event` may see
// every value as it is parsed, and discard it by returning false (nlohmann's parser callback).
nlohmann::json parse_json(std::string_view text, const std::string& where,
                          const nlohmann::json::parser_callback_t& on_event = nullptr);

// Files beyond this are no configuration; larger than any published tokenizer.json or index.
inline constexpr size_t kMaxJsonFileBytes = size_t{256} << 20;
nlohmann::json read_json_file(const std::filesystem::path& path);

struct IntegerBounds {
  int64_t min, max;
};
struct NumberBounds {
  double min, max;
};

// The keys of one JSON object. A key that is null counts as missing. Getters without a fallback
// throw UserError when the key is missing; all of them when the type or the range is wrong.
class JsonObject {
 public:
  // `value` must outlive this. `file` and `prefix` ("rope_scaling.") stand before keys in errors.
  JsonObject(const nlohmann::json& value, std::string file, std::string prefix = "");

  bool has(std::string_view key) const { return find(key) != nullptr; }
  // Integers may be written as floats (1e4) as long as they are whole.
  int64_t integer(std::string_view key, IntegerBounds bounds,
                  std::optional<int64_t> fallback = {}) const;
  // An integer or a list of them; empty when missing.
  std::vector<int64_t> integers(std::string_view key, IntegerBounds bounds) const;
  double number(std::string_view key, NumberBounds bounds,
                std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, bool fallback) const;
  JsonObject object(std::string_view key) const;

  template <class T>
  using Choices = std::vector<std::pair<std::string, T>>;
  // What the string under `key` stands for. An unknown one is an error that lists those known.
  template <class T>
  T choice(std::string_view key, const Choices<T>& choices, std::optional<T> fallback = {}) const;

  [[noreturn]] void fail(std::string_view key, const std::string& what) const;

 private:
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& get(std::string_view key) const;
  int64_t checked_integer(const nlohmann::json& value, std::string_view key,
                          IntegerBounds bounds) const;
  std::string string(std::string_view key) const;
  [[noreturn]] void fail_choice(std::string_view key, const std::string& found,
                                const std::vector<std::string>& known) const;

  const nlohmann::json& value_;
  std::string file_, prefix_;
};

template <class T>
T JsonObject::choice(std::string_view key, const Choices<T>& choices,
                     std::optional<T> fallback) const {
  if (fallback && !has(key)) return *fallback;
  const std::string found = string(key);
  std::vector<std::string> known;
  for (const auto& [name, meaning] : choices) {
    if (name == found) return meaning;
    known.push_back(name);
  }
  fail_choice(key, found, known);
}

}  // namespace troupe::model
