#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdlib>

#include "launcher/chat.h"
#include "launcher/commands.h"

namespace troupe::launcher {

namespace {

// ~/.local/state/troupe/chat_history, or where XDG_STATE_HOME says; empty without a home.
std::filesystem::path history_file() {
  const auto directory = [](const char* variable) -> std::filesystem::path {
    const char* value = std::getenv(variable);
    return value != nullptr ? value : "";
  };
  std::filesystem::path state = directory("XDG_STATE_HOME");
  if (state.empty() && !directory("HOME").empty()) state = directory("HOME") / ".local/state";
  return state.is_absolute() ? state / "troupe/chat_history" : "";
}

}  // namespace

void chat_command(const ChatArguments& arguments) {
  const Config config = read_config(arguments.config);
  for (const std::string& note : config.notes) spdlog::info("{}", note);
  require_runnable(config);
  ChatModel model(config, {.chat_template = arguments.chat_template,
                           .outlives_ctrl_c = ::isatty(STDIN_FILENO) == 1});
  {
    const auto reader =
        make_line_reader(model.beside(), history_file(),
                         {.commands = Chat::command_names(), .takes_file = Chat::takes_file});
    Chat(model, *reader, ChatSettings(config), arguments.raw).run();
  }  // the terminal is as it was, whatever the ranks' end prints
  model.session().shut_down();
}

}  // namespace troupe::launcher
