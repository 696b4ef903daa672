#include "launcher/commands.h"

namespace troupe::launcher {

Config read_config(const ConfigArguments& arguments) {
  Config config = read_config(arguments.config, arguments.overrides);
  if (!arguments.trace.empty()) config.trace_dir = arguments.trace;
  return config;
}

}  // namespace troupe::launcher
