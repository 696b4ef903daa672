#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/checked_size.h"
#include "base/error.h"
#include "base/output_path.h"
#include "model/safetensors.h"

namespace troupe::model {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* what) {
  throw_user_error("{}: {}: {}", path.string(), what, std::generic_category().message(errno));
}

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::filesystem::path temporary_name(const std::filesystem::path& path) {
  return directory_of(path) / fmt::format(".{}.{}.tmp", path.filename().string(), ::getpid());
}

void write_at(int fd, const std::filesystem::path& path, size_t offset, const void* data,
              size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path, "cannot be written");
    from += written;
    offset += static_cast<size_t>(written);
    bytes -= static_cast<size_t>(written);
  }
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     const std::vector<Entry>& entries)
    : path_(path) {
  require_output_path(path);
  // Wide elements first: without gaps every tensor is aligned all the same.
  std::vector<Entry> order = entries;
  std::stable_sort(order.begin(), order.end(), [](const Entry& a, const Entry& b) {
    return dtype_size(a.dtype) > dtype_size(b.dtype);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  size_t end = 0;
  for (const Entry& entry : order) {
    TROUPE_CHECK(dtype_size(entry.dtype) > 0, "tensor '{}'", entry.name);
    int64_t elements = 1;
    for (const int64_t dim : entry.shape) {
      const auto product = checked_mul(elements, dim);
      TROUPE_CHECK(dim >= 0 && product, "tensor '{}'", entry.name);
      elements = *product;
    }
    const size_t begin = end;
    end += static_cast<size_t>(elements) * dtype_size(entry.dtype);
    const bool added = places_.emplace(entry.name, Place{entry.dtype, elements, begin}).second;
    TROUPE_CHECK(added, "tensor '{}' twice", entry.name);
    header[entry.name] = {
        {"dtype", dtype_name(entry.dtype)}, {"shape", entry.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  text.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
  for (auto& [name, place] : places_) place.offset += text.size();

  // A file without a name vanishes with this process, however that ends.
  fd_ = Fd(::open(directory_of(path).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666));
  if (!fd_ && (errno == EOPNOTSUPP || errno == EISDIR)) {  // not on every file system
    temporary_path_ = temporary_name(path);
    fd_ = Fd(::open(temporary_path_.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0666));
  }
  if (!fd_) fail(path, "cannot be created");
  if (::ftruncate(fd_.get(), static_cast<off_t>(text.size() + end)) != 0)
    fail(path, "cannot be written");
  write_at(fd_.get(), path_, 0, text.data(), text.size());
}

SafetensorsWriter::~SafetensorsWriter() {
  if (!temporary_path_.empty()) ::unlink(temporary_path_.c_str());
}

void SafetensorsWriter::write(const std::string& name, int64_t first_element, const void* data,
                              int64_t elements) {
  const auto found = places_.find(name);
  TROUPE_CHECK(found != places_.end(), "tensor '{}'", name);
  const Place& place = found->second;
  TROUPE_CHECK(first_element >= 0 && elements >= 0 && elements <= place.elements &&
                   first_element <= place.elements - elements,
               "tensor '{}': {}+{} of {}", name, first_element, elements, place.elements);
  const size_t size = dtype_size(place.dtype);
  write_at(fd_.get(), path_, place.offset + static_cast<size_t>(first_element) * size, data,
           static_cast<size_t>(elements) * size);
}

void SafetensorsWriter::finish() {
  // Disk full can surface this late: file systems allocate when they write back.
  if (::fsync(fd_.get()) != 0) fail(path_, "cannot be written");
  if (temporary_path_.empty()) {
    const std::string self = fmt::format("/proc/self/fd/{}", fd_.get());
    const auto link_as = [&](const std::filesystem::path& name) {
      return ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0;
    };
    if (link_as(path_)) return;
    if (errno != EEXIST) fail(path_, "cannot be created");
    // linkat does not replace, rename does.
    const std::filesystem::path name = temporary_name(path_);
    ::unlink(name.c_str());
    if (!link_as(name)) fail(path_, "cannot be created");
    temporary_path_ = name;
  }
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) fail(path_, "cannot be replaced");
  temporary_path_.clear();
}

}  // namespace troupe::model
