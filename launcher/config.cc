#include "launcher/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/memory.h"
#include "launcher/config_keys.h"
#include "launcher/yaml_tree.h"
#include "model/input_file.h"
#include "model/json_file.h"

namespace troupe::launcher {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;

// One key that was given, and how messages say where: "a.yaml:12: parallel_config.world_size" or
// "--set parallel_config.world_size=4".
struct Setting {
  YamlNode value;
  std::string where;
  std::string source;  // "a.yaml:12", "--set"
};
using Settings = std::map<const Key*, Setting>;

std::string read_text(const std::filesystem::path& file) {
  const Mapping mapping = model::map_input_file(file);
  if (mapping.size() > kMaxFileBytes) {
    throw_user_error("{}: larger than 1 MiB; this is no configuration", file.string());
  }
  return {reinterpret_cast<const char*>(mapping.data()), mapping.size()};
}

bool is_known_section(const std::string& path) {
  const auto& sections = known_sections();
  return std::find(sections.begin(), sections.end(), path) != sections.end();
}

// Collects the keys of one section of the file; `section` is "" at the top.
void read_section(const YamlNode& node, const std::string& section, const LineName& line_name,
                  Settings& settings) {
  if (node.kind == YamlNode::Kind::kNull) return;  // all its keys are commented out
  if (node.kind != YamlNode::Kind::kMap) {
    throw_user_error("{}: {}: expected keys with values, one a line", line_name(node.line),
                     section.empty() ? "the file" : section);
  }
  std::map<std::string_view, int> seen;
  for (const auto& [name, line, value] : node.entries) {
    const std::string path = section.empty() ? name : section + '.' + name;
    const std::string shown = model::printable(path);
    const auto [first, is_new] = seen.emplace(name, line);
    if (!is_new) {
      throw_user_error("{}: {}: given twice, first in line {}; keep one", line_name(line), shown,
                       first->second);
    }
    if (is_known_section(path)) {
      read_section(value, path, line_name, settings);
    } else if (const Key* key = find_key(section, name)) {
      settings[key] = {value, fmt::format("{}: {}", line_name(line), path), line_name(line)};
    } else {
      throw_user_error("{}: {}: unknown {}{}", line_name(line), shown,
                       section.empty() ? "section" : "key", suggestion(section, name));
    }
  }
}

void read_override(const std::string& text, Settings& settings) {
  const std::string where = "--set " + model::printable(text);
  const size_t equals = text.find('=');
  const size_t dot = text.rfind('.', equals);
  if (equals == std::string::npos || dot == std::string::npos) {
    throw_user_error("{}: expected section.key=value", where);
  }
  const std::string section = text.substr(0, dot);
  const std::string name = text.substr(dot + 1, equals - dot - 1);
  const Key* key = find_key(section, name);
  if (key == nullptr) throw_user_error("{}: unknown key{}", where, suggestion(section, name));
  settings[key] = {parse_yaml(text.substr(equals + 1), [&](int) { return where; }), where, "--set"};
}

using Value = std::variant<bool, int64_t, double, std::string>;

template <class Number>
std::optional<Number> parse_number(const std::string& text) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return number;
}

// Nothing when the value is not what the key expects.
std::optional<Value> parse_value(const Key& key, const YamlNode& node) {
  using Type = Key::Type;
  if (node.kind != YamlNode::Kind::kScalar) return std::nullopt;
  if (key.type == Type::kText) return node.text;
  const auto choice = std::find_if(key.choices.begin(), key.choices.end(),
                                   [&](const Choice& c) { return c.name == node.text; });
  if (choice != key.choices.end()) return int64_t{choice->value};
  if (key.type == Type::kChoice) return std::nullopt;
  if (node.quoted) return std::nullopt;
  if (key.type == Type::kFlag) {
    bool value = false;
    if (!YAML::convert<bool>::decode(YAML::Node(node.text), value)) return std::nullopt;
    return value;
  }
  if (key.type == Type::kInteger) {
    const auto value = parse_number<int64_t>(node.text);
    if (!value || *value < key.min || *value > key.max) return std::nullopt;
    return *value;
  }
  const auto value = parse_number<double>(node.text);
  // Written so that a NaN is refused too.
  if (!value || !(*value >= key.number_min && *value <= key.number_max)) return std::nullopt;
  return *value;
}

void assign(const Field& field, const Value& value) {
  std::visit(
      [&](auto target) {
        using Target = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<Target, bool>) {
          *target = std::get<bool>(value);
        } else if constexpr (std::is_integral_v<Target> || std::is_enum_v<Target>) {
          *target = static_cast<Target>(std::get<int64_t>(value));
        } else if constexpr (std::is_same_v<Target, double>) {
          *target = std::get<double>(value);
        } else if constexpr (!std::is_same_v<Target, std::monostate>) {
          *target = std::get<std::string>(value);
        }
      },
      field);
}

std::string shown_value(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
    case YamlNode::Kind::kScalar:
      break;
  }
  return node.quoted ? fmt::format("the string \"{}\"", model::printable(node.text))
                     : model::printable(node.text);
}

void store(const Key& key, const Setting& setting, Config& config) {
  const auto value = parse_value(key, setting.value);
  if (!value) {
    throw_user_error("{}: expected {}, got {}", setting.where, key.expected(),
                     shown_value(setting.value));
  }
  if (key.field != nullptr) assign(key.field(config), *value);
  if (!key.no_effect.empty()) {
    config.notes.push_back(fmt::format("{} has no effect on a CPU: {}", key.path(), key.no_effect));
  }
  if (!key.note.empty() && value_text(key, config) == key.noted_value) {
    config.notes.push_back(fmt::format("{}: {}: {}", key.path(), key.noted_value, key.note));
  }
}

std::string divisors(int number) {
  std::vector<int> found;
  for (int i = 1; i <= number; ++i) {
    if (number % i == 0) found.push_back(i);
  }
  return fmt::format("{}", fmt::join(found, ", "));
}

// Sizes that are fine alone and contradict each other.
void check_sizes(const Config& config, const Settings& settings) {
  const int world = config.parallel.world_size;
  const auto given = [](const Setting& setting) {
    return *parse_number<int64_t>(setting.value.text);
  };
  for (const auto& [key, setting] : settings) {
    if (key->divides_world && world % given(setting) != 0) {
      throw_user_error("{}: {} does not divide world_size {}; write one of {}", setting.where,
                       given(setting), world, divisors(world));
    }
  }
  for (const auto& [key, setting] : settings) {
    if (key->derived != nullptr && given(setting) != key->derived(config)) {
      throw_user_error("{}: {} disagrees with the other sizes, which give {}; leave it out",
                       setting.where, given(setting), key->derived(config));
    }
  }
}

}  // namespace

Config read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  const LineName line_name = [&](int line) { return fmt::format("{}:{}", file.string(), line); };
  Settings settings;
  read_section(parse_yaml(read_text(file), line_name), "", line_name, settings);
  for (const std::string& text : overrides) read_override(text, settings);

  Config config;
  for (const auto& [key, setting] : settings) {
    store(*key, setting, config);
    config.sources[key->path()] = setting.source;
  }
  check_sizes(config, settings);
  if (config.model.enable_profiler) config.trace_dir = "prof";
  if (config.model.model_path.empty()) {
    throw_user_error("{}: model_config.model_path: missing; write the directory of config.json",
                     file.string());
  }
  if (!config.runtime.expert_placement.empty()) {
    if (config.model.force_eplb)
      throw_user_error(
          "{}: model_config.force_eplb and runtime_config.expert_placement contradict each other; "
          "leave one out",
          file.string());
    config.parallel.expert_placement =
        model::read_expert_placement(config.runtime.expert_placement);
  }
  return config;
}

void require_runnable(const Config& config) {
  const std::vector<std::string> refused = not_runnable(config);
  if (refused.empty()) return;
  if (refused.size() == 1) throw UserError(refused.front());
  throw_user_error("{}; and {} more: troupe check lists them", refused.front(), refused.size() - 1);
}

}  // namespace troupe::launcher
