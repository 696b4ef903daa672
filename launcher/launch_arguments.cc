// What the commands that start ranks have in common.
#include "comm/fault.h"
#include "launcher/commands.h"

namespace troupe::launcher {

Config read_config(const ConfigArguments& arguments) {
  Config config = read_config(arguments.config, arguments.overrides);
  for (const std::string& text : arguments.inject)
    comm::parse_fault(text, config.parallel.world_size);
  config.inject = arguments.inject;
  return config;
}

}  // namespace troupe::launcher
