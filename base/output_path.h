// base/output_path.h: where a result is to be written.
#pragma once

#include <filesystem>

namespace troupe {

// Results are written beside their path and renamed over it when whole. UserError unless that can
// work: the directory exists and can be written, and nothing but a regular file is in the way (a
// device, a pipe or a link would be replaced, not written to).
void require_output_path(const std::filesystem::path& path);

}  // namespace troupe
