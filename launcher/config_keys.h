// launcher/config_keys.h: every key a configuration file may have, in one table.
//
// Reading, error messages with their suggestions, what `run` refuses and the tests of
// docs/configuration.md all follow this table; nothing else lists keys.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "launcher/config.h"

namespace troupe::launcher {

// Where a key's value is kept in a Config; empty for keys that are checked and then forgotten.
using Field = std::variant<std::monostate, bool*, int*, int64_t*, uint64_t*, double*, std::string*,
                           std::filesystem::path*, ComputeType*, ExeMode*, WeightFormat*, CommMode*,
                           MoeDispatch*, MoePayload*>;

struct Choice {
  std::string_view name;
  int value;  // of the enum behind the field; of choices with equal values the first is the name
};

struct Key {
  enum class Type { kFlag, kInteger, kNumber, kText, kChoice };

  std::string_view section, name;
  Type type = Type::kFlag;
  int64_t min = 0, max = 0;               // kInteger
  double number_min = 0, number_max = 0;  // kNumber
  std::vector<Choice> choices = {};       // kChoice; kInteger: words for a value
  Field (*field)(Config&) = nullptr;
  int64_t (*derived)(const Config&) = nullptr;   // the one value that agrees with the other keys
  bool divides_world = false;                    // parallel sizes
  std::vector<std::string_view> runnable = {};   // the values `run` can do; empty: all
  std::string_view no_effect = {};               // not empty: ignored on a CPU, and why
  std::string_view noted_value = {}, note = {};  // with this value: what it means on a CPU

  std::string path() const;      // "parallel_config.attn_tp_size"
  std::string expected() const;  // "an integer from 1 to 1024"
};

const std::vector<Key>& known_keys();
// "model_config", "model_config.custom_params", ...: each is a map.
const std::vector<std::string_view>& known_sections();
const Key* find_key(std::string_view section, std::string_view name);

// "; did you mean attn_tp_size?" for an unknown name in `section` ("" is the top of the file): the
// nearest key or section, this section's first. Points to the documentation if nothing is near.
std::string suggestion(std::string_view section, std::string_view name);

// The key's value in `config`, as it is written in the file; "" for a key without a field.
std::string value_text(const Key& key, const Config& config);

// One line for each key whose value `run` cannot do: the key, its value, the value that works.
std::vector<std::string> not_runnable(const Config& config);

}  // namespace troupe::launcher
