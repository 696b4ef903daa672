#include "launcher/command_docs.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <vector>

namespace troupe::launcher {

namespace {

std::vector<const CLI::App*> shown_commands(const CLI::App& app) {
  std::vector<const CLI::App*> commands;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    if (!command->get_group().empty()) commands.push_back(command);
  return commands;
}

std::vector<const CLI::Option*> shown_options(const CLI::App& app) {
  std::vector<const CLI::Option*> options;
  for (const CLI::Option* option : app.get_options())
    if (!option->get_group().empty()) options.push_back(option);
  return options;
}

// What groff would take for its own.
std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\' || c == '-') result += '\\';
    result += c;
    if (c == '\\') result.back() = 'e';
  }
  if (result.starts_with('.') || result.starts_with('\'')) result.insert(0, "\\&");
  return result;
}

bool takes_value(const CLI::Option& option) { return option.get_type_size() != 0; }

std::string option_entry(const CLI::Option& option) {
  std::string entry = fmt::format(".TP\n\\fB{}\\fR", escaped(option.get_name(false, true)));
  if (takes_value(option)) entry += fmt::format(" \\fI{}\\fR", escaped(option.get_type_name()));
  entry += '\n' + escaped(option.get_description());
  if (option.get_required()) entry += " (must be given)";
  if (!option.get_default_str().empty())
    entry += fmt::format(" [{}]", escaped(option.get_default_str()));
  return entry + '\n';
}

void add_command(const CLI::App& command, const std::string& path, std::string& page) {
  page += fmt::format(".SS {}\n{}\n", escaped(path), escaped(command.get_description()));
  for (const CLI::Option* option : shown_options(command))
    if (!option->check_lname("help")) page += option_entry(*option);
  for (const CLI::App* nested : shown_commands(command))
    add_command(*nested, path + ' ' + nested->get_name(), page);
}

// One branch of the script's `case`: the words that may follow `path`.
void add_words(const CLI::App& app, const std::string& path, std::string& script) {
  std::string words;
  for (const CLI::App* command : shown_commands(app)) words += command->get_name() + ' ';
  for (const CLI::Option* option : shown_options(app))
    for (const std::string& name : option->get_lnames()) words += "--" + name + ' ';
  script += fmt::format("    \"{}\") words=\"{}\" ;;\n", path, words);
  for (const CLI::App* command : shown_commands(app))
    add_words(*command, path + ' ' + command->get_name(), script);
}

// Branches of a `case` on the option before the word: those with a list of values, "{a,b}" in the
// name of their type.
void add_choices(const CLI::App& app, std::set<std::string>& done, std::string& script) {
  for (const CLI::Option* option : shown_options(app)) {
    const std::string type = option->get_type_name();
    const size_t open = type.find('{'), close = type.find('}');
    if (open == std::string::npos || close == std::string::npos || option->get_lnames().empty())
      continue;
    const std::string name = option->get_lnames().front();
    if (!done.insert(name).second) continue;
    std::string words = type.substr(open + 1, close - open - 1);
    std::ranges::replace(words, ',', ' ');
    script += fmt::format("    --{}) words=\"{}\" ;;\n", name, words);
  }
  for (const CLI::App* command : shown_commands(app)) add_choices(*command, done, script);
}

// "run|bench|moe": whatever is a command somewhere.
std::string command_names(const CLI::App& app) {
  std::string names;
  for (const CLI::App* command : shown_commands(app)) {
    names += (names.empty() ? "" : "|") + command->get_name();
    if (const std::string nested = command_names(*command); !nested.empty()) names += '|' + nested;
  }
  return names;
}

}  // namespace

std::string man_page(const CLI::App& app, const std::string& version) {
  std::string page = fmt::format(
      ".TH TROUPE 1 \"\" \"troupe {}\" \"User Commands\"\n"
      ".SH NAME\ntroupe \\- mixture\\-of\\-experts models on CPUs, one process per device\n"
      ".SH SYNOPSIS\n.B troupe\n[\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]\n"
      ".SH DESCRIPTION\n{}\n"
      "Output of the model goes to stdout, everything else to stderr.\n.SH OPTIONS\n",
      version, escaped(app.get_description()));
  for (const CLI::Option* option : shown_options(app)) page += option_entry(*option);
  page += ".SH COMMANDS\n";
  for (const CLI::App* command : shown_commands(app))
    add_command(*command, command->get_name(), page);
  return page +
         ".SH EXIT STATUS\n"
         "0 done; 1 an internal error, or verify found a difference; 2 the input is wrong: one "
         "line "
         "says what, where and what to do; 3 a rank failed or timed out; 130 interrupted.\n"
         ".SH ENVIRONMENT\n.TP\n.B TROUPE_ISA\n"
         "The instruction set of the kernels: scalar, avx2, avx512 or avx512_bf16; without it the "
         "best that the machine has.\n";
}

std::string bash_completion(const CLI::App& app) {
  std::string words, choices;
  std::set<std::string> done;
  add_words(app, "troupe", words);
  add_choices(app, done, choices);
  return fmt::format(
      R"(# bash completion of troupe; made by `troupe completion bash`
_troupe() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  local path=troupe words="" i
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case ${{COMP_WORDS[i]}} in
      {}) path+=" ${{COMP_WORDS[i]}}" ;;
    esac
  done
  case $path in
{}  esac
  if [[ $word != -* && $before == -* ]]; then
    words=""
    case $before in
{}    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -o default -F _troupe troupe
)",
      command_names(app), words, choices);
}

}  // namespace troupe::launcher
