#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace troupe {

std::string errno_text(const char* call) {
  return fmt::format("{}: {}", call, std::strerror(errno));
}

void check_failed(const char* condition, const char* file, int line, const std::string& values) {
  throw std::logic_error(fmt::format("internal error: {} does not hold at {}:{}{}{}", condition,
                                     file, line, values.empty() ? "" : ": ", values));
}

}  // namespace troupe
