#include "launcher/command_errors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>
#include <vector>

#include "launcher/nearest_name.h"
#include "model/json_file.h"

namespace troupe::launcher {
namespace {

std::string shown(const std::string& value) { return value.empty() ? "nothing" : value; }

template <class Number>
CLI::Validator within(Number low, Number high, const char* kind) {
  const std::string range = fmt::format("from {} to {}", low, high);
  return CLI::Validator(
      [low, high, range, kind](std::string& value) -> std::string {
        Number number{};
        const char* const end = value.data() + value.size();
        const auto [parsed, error] = std::from_chars(value.data(), end, number);
        const bool whole = error == std::errc() && parsed == end;
        if (whole && number >= low && number <= high) return "";
        return fmt::format("expected {} {}, got {}", kind, range, model::printable(shown(value)));
      },
      range);
}

// The commands that were understood, from `app` to the innermost.
std::vector<const CLI::App*> understood(const CLI::App& app) {
  std::vector<const CLI::App*> commands{&app};
  while (!commands.back()->get_subcommands().empty())
    commands.push_back(commands.back()->get_subcommands().front());
  return commands;
}

// Those of which one can stand behind `app`; hidden ones left out.
std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    if (!command->get_group().empty()) names.push_back(command->get_name());
  return names;
}

std::string nearest(const CLI::App& app, std::string_view word) {
  const std::vector<const CLI::App*> commands = understood(app);
  std::vector<std::string> names = command_names(*commands.back());
  for (const CLI::App* command : commands)
    for (const CLI::Option* option : command->get_options())
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return did_you_mean(word.substr(0, word.find('=')), {names.begin(), names.end()});
}

// The first word on the command line that CLI11 made nothing of; empty if it understood all.
std::string unknown_word(const CLI::App& app, int argc, const char* const* argv) {
  const std::vector<std::string> unknown = app.remaining(true);
  const auto* const first = std::find_if(argv + 1, argv + argc, [&](const char* word) {
    return std::ranges::find(unknown, word) != unknown.end();
  });
  return first == argv + argc ? "" : *first;
}

std::string unknown_text(const CLI::App& app, const std::string& word) {
  return fmt::format("{}: nothing known by that name{}", model::printable(word),
                     nearest(app, word));
}

// CLI11's "--config: At Most 1 required but received 2", "--prompt: 1 required TEXT missing".
std::string mismatch_text(const std::string& text) {
  const std::string option = text.substr(0, text.find(':'));
  if (text.find("At Most 1 required") != std::string::npos)
    return option + ": given more than once";
  if (text.ends_with(" missing")) return option + ": its value is missing";
  return text;
}

std::string required_text(const CLI::App& app, const std::string& text, const std::string& word) {
  const CLI::App& innermost = *understood(app).back();
  const std::vector<std::string> commands = command_names(innermost);
  const bool wants_command = !commands.empty();
  if (!word.empty() && (wants_command || word.starts_with('-') || !nearest(app, word).empty()))
    return unknown_text(app, word);
  if (&innermost == &app || !wants_command) return text;
  return fmt::format("{}: write one of {} behind it", innermost.get_name(),
                     fmt::join(commands, ", "));
}

std::string error_text(const CLI::App& app, const CLI::ParseError& error, int argc,
                       const char* const* argv) {
  const std::string word = unknown_word(app, argc, argv);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr)
    return word.empty() ? "an argument was not expected" : unknown_text(app, word);
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr)
    return required_text(app, error.what(), word);
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr)
    return mismatch_text(error.what());
  return error.what();
}

}  // namespace

CLI::Validator integer_from(int64_t low, int64_t high) { return within(low, high, "an integer"); }
CLI::Validator number_from(double low, double high) { return within(low, high, "a number"); }

void refuse_empty_values(CLI::App& app) {
  static constexpr std::array<std::string_view, 7> kTexts = {"prompt", "prompt-ids", "text", "ids",
                                                             "stop",   "inject",     "set"};
  const auto is_text = [](const CLI::Option& option) {
    return std::ranges::any_of(option.get_lnames(), [](const std::string& name) {
      return std::ranges::find(kTexts, name) != kTexts.end();
    });
  };
  for (CLI::Option* option : app.get_options())
    if (option->get_items_expected_max() > 0 && !is_text(*option))
      option->check(CLI::Validator(
          [](std::string& value) -> std::string {
            return value.empty() ? "expected a value, got nothing" : "";
          },
          ""));
  for (CLI::App* command : app.get_subcommands({})) refuse_empty_values(*command);
}

std::string command_error(const CLI::App& app, const CLI::ParseError& error, int argc,
                          const char* const* argv) {
  std::string path;
  for (const CLI::App* command : understood(app)) path += command->get_name() + " ";
  return fmt::format("{} (see {}--help)", error_text(app, error, argc, argv), path);
}

}  // namespace troupe::launcher
