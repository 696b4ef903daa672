#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "launcher/commands.h"
#include "launcher/inspect.h"

namespace troupe::launcher {

void inspect_command(const InspectArguments& arguments) {
  const Inspection inspection = inspect(arguments.directory, arguments.layout);
  if (arguments.json)
    fmt::print("{}\n", inspection_json(inspection).dump(2));
  else
    fmt::print("{}", inspection_text(inspection));
}

}  // namespace troupe::launcher
