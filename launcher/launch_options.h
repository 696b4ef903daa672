// launcher/launch_options.h: the options of commands that read a configuration and start ranks.
#pragma once

#include "launcher/commands.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace troupe::launcher {

// --config and --set. Returns --config, which the caller may make required.
CLI::Option* add_config_options(CLI::App& command, ConfigArguments& arguments);
void add_inject_option(CLI::App& command, ConfigArguments& arguments);
CLI::Option* add_trace_option(CLI::App& command, ConfigArguments& arguments);

}  // namespace troupe::launcher
