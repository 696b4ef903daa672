#include "model/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include "base/error.h"

namespace troupe::model {

// Where a relative path leads, for those who believe to be somewhere else.
static std::string looked_in(const std::filesystem::path& path) {
  std::error_code gone;
  const std::filesystem::path here = std::filesystem::current_path(gone);
  return path.is_absolute() || gone ? "" : fmt::format(" (looked in {})", here.string());
}

Mapping map_input_file(const std::filesystem::path& path) {
  const auto reason = [] { return std::generic_category().message(errno); };
  if (path.empty()) throw_user_error("the name of a file is empty");
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    const int error = errno;
    throw_user_error("{}: cannot be opened: {}{}", path.string(), reason(),
                     error == ENOENT ? looked_in(path) : "");
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0)
    throw_user_error("{}: cannot be read: {}", path.string(), reason());
  if (!S_ISREG(status.st_mode))
    throw_user_error("{}: is {}, not a file", path.string(),
                     S_ISDIR(status.st_mode) ? "a directory" : "a device or pipe");
  if (status.st_size == 0) throw_user_error("{}: is empty", path.string());
  try {
    return Mapping(fd.get(), static_cast<size_t>(status.st_size), Mapping::Access::kReadOnly);
  } catch (const std::runtime_error& error) {
    throw_user_error("{}: cannot be mapped: {}", path.string(), error.what());
  }
}

}  // namespace troupe::model
