#include "launcher/launch_options.h"

#include <CLI/CLI.hpp>

namespace troupe::launcher {

CLI::Option* add_config_options(CLI::App& command, ConfigArguments& arguments) {
  CLI::Option* config = command.add_option("--config", arguments.config, "YAML file of the run");
  command
      .add_option("--set", arguments.overrides, "section.key=value, overrides the file; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  return config;
}

void add_inject_option(CLI::App& command, ConfigArguments& arguments) {
  command
      .add_option("--inject", arguments.inject,
                  "a fault, as kill:rank=3,stage=dispatch,step=12; may repeat")
      ->take_all()
      ->allow_extra_args(false);
}

CLI::Option* add_trace_option(CLI::App& command, ConfigArguments& arguments) {
  return command.add_option("--trace", arguments.trace,
                            "write a trace of each rank into this directory (docs/tracing.md)");
}

}  // namespace troupe::launcher
