#include "base/output_path.h"

#include <unistd.h>

#include "base/error.h"

namespace troupe {

void require_output_path(const std::filesystem::path& path) {
  const auto directory = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  if (std::filesystem::exists(directory) && !std::filesystem::is_directory(directory))
    throw_user_error("{}: cannot be created ({} is no directory)", path.string(),
                     directory.string());
  if (::access(directory.c_str(), W_OK) != 0)
    throw_user_error("{}: cannot be created ({})", path.string(), errno_text("access"));
  const auto there = std::filesystem::symlink_status(path);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there))
    throw_user_error("{}: is not a regular file: name a new file, or one to replace",
                     path.string());
}

}  // namespace troupe
