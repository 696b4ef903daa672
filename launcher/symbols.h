// launcher/symbols.h: names of functions, for the stacks of ranks that crashed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace troupe::launcher {

// "troupe::comm::Transfer::progress()+0x1c": the function of an ELF file that covers `address`, as
// the file itself counts. "" if the file cannot be read, is no ELF file of this machine, or has no
// symbol there; never an error, as a report of another one is under way.
std::string function_at(const std::filesystem::path& module, uint64_t address);

}  // namespace troupe::launcher
