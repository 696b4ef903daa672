// launcher/command_docs.h: the command line written down for other programs, from the same CLI11
// objects that parse it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace troupe::launcher {

// troupe(1), for man(1).
std::string man_page(const CLI::App& app, const std::string& version);

// A script for bash: completes commands, options, the values that an option may have, and files.
std::string bash_completion(const CLI::App& app);

}  // namespace troupe::launcher
