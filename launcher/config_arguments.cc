#include "comm/fault.h"
#include "launcher/commands.h"

namespace troupe::launcher {

Config read_config(const ConfigArguments& arguments) {
  Config config = read_config(arguments.config, arguments.overrides);
  for (const std::string& text : arguments.inject)
    comm::parse_fault(text, config.parallel.world_size);
  config.inject = arguments.inject;
  if (!arguments.trace.empty()) config.trace_dir = arguments.trace;
  return config;
}

}  // namespace troupe::launcher
