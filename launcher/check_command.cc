#include <fmt/format.h>

#include "launcher/check.h"
#include "launcher/commands.h"

namespace troupe::launcher {

void check_command(const CheckArguments& arguments) {
  const Config config = read_config(arguments.config);
  fmt::print("{}", check_report(config, arguments.fit));
}

}  // namespace troupe::launcher
