// launcher/command_errors.h: what is said of a command line that cannot be understood, in the words
// in which errors of a configuration are told.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

namespace troupe::launcher {

// Checks for options: "--port: expected an integer from 0 to 65535, got 99999".
CLI::Validator integer_from(int64_t low, int64_t high);
CLI::Validator number_from(double low, double high);

// Lets no option of the commands added so far be given without a value, as "$UNSET" of a shell
// gives it; texts may be empty, or say themselves why not.
void refuse_empty_values(CLI::App& app);

// The line for what CLI11 could not parse: of words that nobody knows the first, and what it may be
// meant for; of the rest what is wrong with which option. `app`: after the failed parse of argv.
std::string command_error(const CLI::App& app, const CLI::ParseError& error, int argc,
                          const char* const* argv);

}  // namespace troupe::launcher
