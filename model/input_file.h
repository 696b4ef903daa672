// model/input_file.h: opening the files of a checkpoint.
#pragma once

#include <cstddef>
#include <filesystem>

#include "base/memory.h"

namespace troupe::model {

// Maps a whole regular file read-only. Throws UserError naming the path when it cannot be read, is
// no regular file (never blocks on a FIFO), or is empty.
Mapping map_input_file(const std::filesystem::path& path);

}  // namespace troupe::model
