// base/output_path.h: where a result is to be written.
#pragma once

#include <filesystem>
#include <string_view>

namespace troupe {

// Results are written beside their path and renamed over it when whole. UserError unless that can
// work: the directory exists and can be written, and nothing but a regular file is in the way (a
// device, a pipe or a link would be replaced, not written to).
void require_output_path(const std::filesystem::path& path);

// Writes `text` that way. UserError naming the path and why.
void replace_file(const std::filesystem::path& path, std::string_view text);

}  // namespace troupe
