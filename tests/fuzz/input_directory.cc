#include "tests/fuzz/input_directory.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>

namespace troupe::fuzz {
namespace {

namespace fs = std::filesystem;

const fs::path& scratch() {
  static const struct Scratch {
    Scratch() {
      const fs::path base =
          ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : fs::temp_directory_path();
      std::string name = (base / "troupe-fuzz-XXXXXX").string();
      if (::mkdtemp(name.data()) == nullptr) std::abort();
      path = name;
    }
    ~Scratch() { fs::remove_all(path); }
    fs::path path;
  } directory;
  return directory.path;
}

}  // namespace

std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

fs::path directory_of(const std::string& target) {
  fs::path directory = scratch() / target;
  fs::create_directories(directory);
  return directory;
}

fs::path directory_with(const std::string& target, const char* file, Bytes bytes) {
  fs::path directory = directory_of(target);
  write(directory / file, text_of(bytes));
  return directory;
}

}  // namespace troupe::fuzz
