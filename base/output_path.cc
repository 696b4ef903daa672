#include "base/output_path.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/error.h"
#include "base/memory.h"

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

void replace_file(const std::filesystem::path& path, std::string_view text) {
  require_output_path(path);
  const std::string temporary = path.string() + ".part";
  const Fd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  bool whole = static_cast<bool>(fd);
  for (size_t done = 0; whole && done < text.size();) {
    const ssize_t written = ::write(fd.get(), text.data() + done, text.size() - done);
    whole = written > 0;
    done += whole ? static_cast<size_t>(written) : 0;
  }
  if (whole && ::rename(temporary.c_str(), path.c_str()) == 0) return;
  const std::string why = errno_text("write");
  ::unlink(temporary.c_str());
  throw_user_error("{}: cannot be written ({})", path.string(), why);
}

}  // namespace troupe
