#include "launcher/chat_settings.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "base/error.h"
#include "launcher/nearest_name.h"
#include "model/json_file.h"

namespace troupe::launcher {

namespace {

struct Setting {
  std::string_view name;
  double ChatSettings::*field;
  double min, max;
  bool whole;  // no fraction

  std::string range() const {
    return fmt::format("{} from {:g} to {:.0f}", whole ? "an integer" : "a number", min, max);
  }
};

using S = ChatSettings;
constexpr double kMostTokens = 1 << 24;
constexpr Setting kSettings[] = {
    {"temperature", &S::temperature, 0, 100, false},
    {"top_p", &S::top_p, 0, 1, false},
    {"top_k", &S::top_k, 0, std::numeric_limits<int32_t>::max(), true},
    {"min_p", &S::min_p, 0, 1, false},
    {"repetition_penalty", &S::repetition_penalty, 0.01, 100, false},
    {"presence_penalty", &S::presence_penalty, -100, 100, false},
    {"frequency_penalty", &S::frequency_penalty, -100, 100, false},
    {"max_new_tokens", &S::max_new_tokens, 1, kMostTokens, true},
};

const Setting& find_setting(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Setting& setting : kSettings) {
    if (setting.name == name) return setting;
    names.push_back(setting.name);
  }
  throw_user_error("unknown setting \"{}\"{} (/set lists all)", model::printable(name),
                   did_you_mean(name, names));
}

template <class Number>
bool parse(std::string_view text, Number& number) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && stop == text.data() + text.size();
}

}  // namespace

ChatSettings::ChatSettings(const Config& config)
    : temperature(config.data.temperature),
      top_p(config.data.top_p),
      top_k(config.data.top_k),
      max_new_tokens(config.scheduler.max_new_tokens),
      seed(config.data.seed) {}

void ChatSettings::set(std::string_view name, std::string_view value) {
  if (name == "seed") return set_seed(value);
  const Setting& setting = find_setting(name);
  double number = 0;
  const bool fits = parse(value, number) && number >= setting.min && number <= setting.max &&
                    (!setting.whole || number == std::floor(number));
  if (!fits)
    throw_user_error("{}: \"{}\" is not {}", name, model::printable(value), setting.range());
  this->*setting.field = number;
}

void ChatSettings::set_seed(std::string_view value) {
  uint64_t number = 0;
  if (!parse(value, number))
    throw_user_error("seed: \"{}\" is not an integer from 0 to {}", model::printable(value),
                     std::numeric_limits<uint64_t>::max());
  seed = number;
}

void ChatSettings::apply_to(actors::Request& request) const {
  request.temperature = static_cast<float>(temperature);
  request.top_p = static_cast<float>(top_p);
  request.top_k = static_cast<int32_t>(top_k);
  request.min_p = static_cast<float>(min_p);
  request.repetition_penalty = static_cast<float>(repetition_penalty);
  request.presence_penalty = static_cast<float>(presence_penalty);
  request.frequency_penalty = static_cast<float>(frequency_penalty);
  request.max_new_tokens = static_cast<int>(max_new_tokens);
  request.seed = seed;
}

std::string ChatSettings::text() const {
  std::string text;
  for (const Setting& setting : kSettings)
    text += fmt::format("{:<20} {:<10g} {}\n", setting.name, this->*setting.field, setting.range());
  return text + fmt::format("{:<20} {}\n", "seed", seed);
}

nlohmann::ordered_json ChatSettings::json() const {
  nlohmann::ordered_json json;
  for (const Setting& setting : kSettings) json[std::string(setting.name)] = this->*setting.field;
  json["seed"] = seed;
  return json;
}

void ChatSettings::read(const nlohmann::json& values, const std::string& where) {
  if (!values.is_object()) throw_user_error("{}: expected an object", where);
  for (const auto& [name, value] : values.items()) {
    try {
      set(name, value.dump());
    } catch (const UserError& error) {
      throw_user_error("{}: {}", where, error.what());
    }
  }
}

}  // namespace troupe::launcher
