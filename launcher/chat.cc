#include "launcher/chat.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "launcher/chat_report.h"
#include "launcher/nearest_name.h"
#include "launcher/requests.h"
#include "model/json_file.h"
#include "model/utf8.h"

namespace troupe::launcher {

namespace {

enum class Argument { kNone, kOptional, kRequired };

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\n") + 1 - begin);
}

void tell(const std::string& text) {
  std::fflush(stdout);
  std::fputs(text.c_str(), stderr);
}

}  // namespace

struct Chat::Command {
  std::string_view name, argument;  // argument: as help shows it; FILE is completed
  Argument wants = Argument::kNone;
  std::string_view help;
  void (*run)(Chat& chat, const std::string& argument) = nullptr;
};

const std::vector<Chat::Command>& Chat::commands() {
  using enum Argument;
  static const std::vector<Command> commands{
      {"/help", "", kNone, "this list", [](Chat& c, const std::string&) { c.help(); }},
      {"/reset", "", kNone, "forget what was said; /system and /set stay",
       [](Chat& c, const std::string&) { c.reset(); }},
      {"/system", "[TEXT|off]", kOptional, "what the model is told before all; alone: shows it",
       [](Chat& c, const std::string& text) { c.set_system(text); }},
      {"/regen", "", kNone, "the last answer once more, with other random numbers",
       [](Chat& c, const std::string&) { c.regenerate(); }},
      {"/history", "", kNone, "what was said",
       [](Chat& c, const std::string&) { tell(c.conversation_.text()); }},
      {"/read", "FILE", kRequired, "say what is in a file",
       [](Chat& c, const std::string& file) { c.say(read_text_file(file)); }},
      {"/raw", "", kNone, "plain continuation of a text, without chat template; again: back",
       [](Chat& c, const std::string&) { c.toggle_raw(); }},
      {"/set", "[NAME VALUE]", kOptional, "temperature, top_p, ...; alone: shows all",
       [](Chat& c, const std::string& arguments) { c.set(arguments); }},
      {"/seed", "N", kRequired, "of the random numbers",
       [](Chat& c, const std::string& value) { c.settings_.set_seed(value); }},
      {"/stats", "", kNone, "times, accepted drafts, what the prefix cache had",
       [](Chat& c, const std::string&) { c.show_stats(); }},
      {"/ranks", "", kNone, "what each rank does, and its memory",
       [](Chat& c, const std::string&) { c.show_ranks(); }},
      {"/experts", "", kNone, "which experts the conversation's tokens went to, by layer",
       [](Chat& c, const std::string&) { c.show_experts(); }},
      {"/trace", "on [DIR]|off", kOptional,
       "on: record what the ranks do; off: write that into DIR (./trace); alone: shows it",
       [](Chat& c, const std::string& arguments) { c.trace(arguments); }},
      {"/save", "FILE", kRequired, "write conversation and settings as JSON",
       [](Chat& c, const std::string& file) { save_chat(file, c.conversation_, c.settings_); }},
      {"/load", "FILE", kRequired, "go on with what was saved",
       [](Chat& c, const std::string& file) {
         load_chat(file, c.conversation_, c.settings_);
         c.choice_ = 0;
       }},
      {"/quit", "", kNone, "leave; so does Ctrl-D",
       [](Chat& c, const std::string&) { c.quit_ = true; }},
  };
  return commands;
}

std::vector<std::string_view> Chat::command_names() {
  std::vector<std::string_view> names;
  for (const Command& command : commands()) names.push_back(command.name);
  return names;
}

bool Chat::takes_file(std::string_view command) {
  return std::ranges::any_of(commands(), [&](const Command& candidate) {
    return candidate.name == command && candidate.argument == "FILE";
  });
}

Chat::Chat(ChatModel& model, LineReader& reader, ChatSettings settings, bool raw)
    : model_(model), reader_(reader), settings_(settings) {
  conversation_.raw = raw || !model.has_chat_template();
  if (!reader_.interactive()) return;
  if (conversation_.raw && !raw)
    tell("The model has no chat template: what you type is continued as plain text.\n");
  tell("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.\n");
}

void Chat::run() {
  while (!quit_) {
    const int first_line = lines_ + 1;
    const std::optional<std::string> input = read_input();
    if (!input) return;
    try {
      handle(*input);
    } catch (const UserError& error) {
      if (!reader_.interactive()) throw_user_error("stdin:{}: {}", first_line, error.what());
      tell(fmt::format("{}\n", error.what()));
    }
  }
}

std::string Chat::prompt() const { return conversation_.raw ? "raw> " : "> "; }

std::optional<std::string> Chat::read_input() {
  std::optional<std::string> input = reader_.read(prompt());
  ++lines_;
  while (input && input->ends_with('\\')) {
    const std::optional<std::string> more = reader_.read(". ");
    ++lines_;
    input->back() = '\n';
    if (!more) break;
    *input += *more;
  }
  return input;
}

void Chat::handle(const std::string& input) {
  if (input.starts_with("//")) return say(input.substr(1));
  if (input.starts_with('/')) return run_command(input);
  // An empty line asks for more of a plain text; of a chat it says nothing.
  const bool empty = trimmed(input).empty();
  if (!empty || (conversation_.raw && !conversation_.parts.empty())) say(empty ? "" : input);
}

void Chat::run_command(std::string_view input) {
  const std::string_view name = input.substr(0, input.find_first_of(" \t\n"));
  const std::string argument(trimmed(input.substr(name.size())));
  const auto command = std::ranges::find(commands(), name, &Command::name);
  if (command == commands().end())
    throw_user_error("unknown command {}{} (/help lists all; // begins a text with a slash)",
                     model::printable(name), did_you_mean(name, command_names()));
  if (command->wants == Argument::kRequired && argument.empty())
    throw_user_error("{} wants {}: {}", name, command->argument, command->help);
  if (command->wants == Argument::kNone && !argument.empty())
    throw_user_error("{} stands alone; what is \"{}\"?", name, model::printable(argument));
  command->run(*this, argument);
}

void Chat::say(const std::string& text) {
  if (const auto bad = model::find_invalid_utf8(text))
    throw_user_error("the text is not UTF-8 at byte {}", *bad);
  std::vector<ChatConversation::Message>& said = conversation_.current();
  const size_t before = said.size();
  if (!text.empty()) said.push_back({"user", text});
  try {
    choice_ = 0;
    print_answer(choice_);
  } catch (const UserError&) {
    said.resize(before);
    throw;
  }
}

void Chat::regenerate() {
  std::vector<ChatConversation::Message>& said = conversation_.current();
  if (said.empty() || said.back().role != "assistant")
    throw_user_error("there is no answer to make anew; say something first");
  if (settings_.temperature == 0 && reader_.interactive())
    tell("The temperature is 0: the same again. /set temperature 0.8 makes room for others.\n");
  said.pop_back();
  print_answer(++choice_);
}

void Chat::print_answer(uint32_t choice) {
  bool ends_line = true;
  last_ = model_.answer(conversation_, settings_, choice, [&](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    ends_line = text.ends_with('\n');
  });
  if (!ends_line || last_->text.empty()) std::fputc('\n', stdout);
  std::fflush(stdout);
  ++answers_;
  // Also when it was stopped: what was read can be spoken of.
  conversation_.current().push_back({"assistant", last_->text});
  if (reader_.interactive()) tell(ending_note(*last_, settings_, model_.context()));
}

void Chat::help() {
  std::string text;
  for (const Command& command : commands())
    text += fmt::format("{:<22} {}\n", fmt::format("{} {}", command.name, command.argument),
                        command.help);
  tell(text +
       "A line that ends with \\ goes on in the next one; pasted text may have any number of "
       "lines.\n");
}

void Chat::reset() {
  conversation_.current().clear();
  choice_ = 0;
}

void Chat::set_system(const std::string& text) {
  if (conversation_.raw) throw_user_error("/system means nothing in a plain text; /raw leaves it");
  if (text.empty())
    return tell(conversation_.system.empty() ? "(none)\n" : conversation_.system + '\n');
  conversation_.system = text == "off" ? "" : text;
}

void Chat::set(const std::string& arguments) {
  if (arguments.empty()) return tell(settings_.text());
  const size_t space = arguments.find_first_of(" =");
  if (space == std::string::npos)
    throw_user_error("/set wants a name and a value, as in /set temperature 0.7");
  settings_.set(trimmed(arguments.substr(0, space)), trimmed(arguments.substr(space + 1)));
}

void Chat::trace(const std::string& arguments) {
  Session& session = model_.session();
  const std::string word = arguments.substr(0, arguments.find_first_of(" \t"));
  const std::string directory(trimmed(std::string_view(arguments).substr(word.size())));
  if (word.empty()) return tell(session.tracing() ? "the trace is on\n" : "the trace is off\n");
  if (word != "on" && (word != "off" || !directory.empty()))
    throw_user_error("/trace: expected on, on DIR, or off; not \"{}\"",
                     model::printable(arguments));
  if (session.tracing() == (word == "on")) throw_user_error("the trace is {} already", word);
  if (word == "on") return session.start_trace(directory.empty() ? "trace" : directory);
  const std::string written = session.finish_trace().string();
  tell(fmt::format("trace of {} ranks in {}: troupe trace summary {}; troupe trace html {}\n",
                   session.rank_status().size(), written, written, written));
}

void Chat::toggle_raw() {
  if (conversation_.raw && !model_.has_chat_template())
    throw_user_error("the model has no chat template; troupe chat --chat-template FILE names one");
  conversation_.raw = !conversation_.raw;
  choice_ = 0;
}

void Chat::show_stats() const {
  tell((last_ ? answer_text(*last_) : "no answer yet\n") +
       session_text(model_.session(), answers_));
}

void Chat::show_ranks() const { tell(ranks_table(model_.session().rank_status())); }

void Chat::show_experts() {
  if (conversation_.current().empty()) throw_user_error("nothing was said yet");
  tell(expert_map(model_.expert_load(conversation_)));
}

}  // namespace troupe::launcher
