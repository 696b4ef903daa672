#include "launcher/config_text.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "launcher/config_keys.h"

namespace troupe::launcher {

std::string config_text(const Config& config) {
  std::string text;
  for (const std::string_view section : known_sections()) {
    // "model_config.custom_params" follows model_config and is a map inside it.
    const size_t dot = section.find('.');
    const std::string indent(dot == std::string_view::npos ? 0 : 2, ' ');
    text += fmt::format("{}{}:\n", indent,
                        dot == std::string_view::npos ? section : section.substr(dot + 1));
    for (const Key& key : known_keys()) {
      const std::string value = key.section == section ? value_text(key, config) : "";
      if (value.empty()) continue;
      // A JSON string is a YAML string too, whatever is in it.
      const bool quoted = key.type == Key::Type::kText;
      text += fmt::format("{}  {}: {}\n", indent, key.name,
                          quoted ? nlohmann::json(value).dump() : value);
    }
  }
  return text;
}

}  // namespace troupe::launcher
