// launcher/check.h: `troupe check`: validates a configuration against its model, starts nothing.
#pragma once

#include <string>

#include "launcher/config.h"

namespace troupe::launcher {

// The model, the layout as a picture and a table, what its collectives move, the memory it needs,
// and what `run` would refuse. UserError as read_config and ParallelLayout, and for a checkpoint
// that is there and wrong. With `fit` not fitting this machine is a UserError with the numbers.
std::string check_report(const Config& config, bool fit);

}  // namespace troupe::launcher
