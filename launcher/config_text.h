// launcher/config_text.h: a configuration as a file that says the same.
#pragma once

#include <string>

#include "launcher/config.h"

namespace troupe::launcher {

// YAML with every key that has a value, defaults and --set among them: what a run really was.
std::string config_text(const Config& config);

}  // namespace troupe::launcher
