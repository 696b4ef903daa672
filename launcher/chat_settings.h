// launcher/chat_settings.h: what /set changes: how the answers of a chat are sampled.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "actors/request.h"
#include "launcher/config.h"

namespace troupe::launcher {

// Names and meanings are those of actors::Request, defaults those of the configuration.
struct ChatSettings {
  double temperature = 0, top_p = 1, top_k = 0, min_p = 0;
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  double max_new_tokens = 0;
  uint64_t seed = 0;

  explicit ChatSettings(const Config& config);

  // "temperature", "0.7". UserError for an unknown name, with the nearest, and for what is no
  // number in range, with the range.
  void set(std::string_view name, std::string_view value);
  void set_seed(std::string_view value);
  void apply_to(actors::Request& request) const;

  std::string text() const;  // a line for each: name, value, range
  nlohmann::ordered_json json() const;
  // Takes what the object has of them. UserError as set(); `where` stands before it.
  void read(const nlohmann::json& values, const std::string& where);
};

}  // namespace troupe::launcher
