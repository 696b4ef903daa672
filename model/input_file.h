// model/input_file.h: files that users give, to be read where they lie.
//
// Whoever cuts a file short while it is mapped sends those who read it a SIGBUS. Not here: bytes
// that are gone read as zero, and once all is read, require_unchanged() says what happened.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <filesystem>
#include <string_view>

#include "base/memory.h"

namespace troupe::model {

class InputFile {
 public:
  // Maps a whole regular file read-only. Throws UserError naming the path when it cannot be read,
  // is no regular file (never blocks on a FIFO), or is empty.
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::byte* data() const { return mapping_.data(); }
  size_t size() const { return mapping_.size(); }
  std::string_view text() const { return {reinterpret_cast<const char*>(data()), size()}; }

  // Throws UserError when the file at that path is not the one that was mapped, or has been written
  // to since: what was read may be neither the old nor the new.
  void require_unchanged() const;

 private:
  std::filesystem::path path_;
  struct stat status_ {};
  Mapping mapping_;
};

}  // namespace troupe::model
