#include "launcher/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "launcher/input_wait.h"

namespace troupe::launcher {

namespace {

class PlainReader final : public LineReader {
 public:
  explicit PlainReader(Beside beside)
      : beside_(std::move(beside)), terminal_(::isatty(STDIN_FILENO) == 1) {}

  std::optional<std::string> read(const std::string& prompt) override {
    show(prompt);
    for (;;) {
      if (const size_t end = bytes_.find('\n'); end != std::string::npos) return take(end);
      switch (wait_for_input(beside_, bytes_)) {
        case Input::kBytes:
        case Input::kResumed:
          break;
        case Input::kCancelled:
          bytes_.clear();
          show("\n" + prompt);
          break;
        case Input::kEnd:
          if (bytes_.empty()) return std::nullopt;
          return std::exchange(bytes_, {});
      }
    }
  }

  bool interactive() const override { return terminal_; }

 private:
  void show(const std::string& prompt) const {
    if (terminal_) std::fputs(prompt.c_str(), stderr);
  }
  std::string take(size_t end) {
    std::string line = bytes_.substr(0, end);
    bytes_.erase(0, end + 1);
    return line;
  }

  Beside beside_;
  bool terminal_;
  std::string bytes_;
};

}  // namespace

Input wait_for_input(const LineReader::Beside& beside, std::string& bytes) {
  for (;;) {
    pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
                    {.fd = beside.fd, .events = POLLIN, .revents = 0}};
    if (::poll(fds, 2, -1) < 0) {
      if (errno == EINTR) return Input::kResumed;
      throw std::runtime_error(errno_text("poll"));
    }
    if (fds[1].revents != 0 && beside.on_ready()) return Input::kCancelled;
    if (fds[0].revents == 0) continue;
    char buffer[4096];
    const ssize_t size = ::read(STDIN_FILENO, buffer, sizeof(buffer));
    if (size < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (size <= 0) return Input::kEnd;
    bytes.append(buffer, static_cast<size_t>(size));
    return Input::kBytes;
  }
}

std::unique_ptr<LineReader> make_plain_reader(LineReader::Beside beside) {
  return std::make_unique<PlainReader>(std::move(beside));
}

std::unique_ptr<LineReader> make_line_reader(LineReader::Beside beside,
                                             std::filesystem::path history_file,
                                             Completion completion) {
  const char* type = std::getenv("TERM");
  const bool moves_cursor = type != nullptr && *type != '\0' && std::string_view(type) != "dumb";
  if (moves_cursor && ::isatty(STDIN_FILENO) == 1 && ::isatty(STDERR_FILENO) == 1)
    return make_line_editor(std::move(beside), std::move(history_file), std::move(completion));
  return make_plain_reader(std::move(beside));
}

}  // namespace troupe::launcher
