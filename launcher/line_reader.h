// launcher/line_reader.h: lines that a person types, or that come through a pipe.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::launcher {

class LineReader {
 public:
  // What else is waited for while no input comes. `fd` is readable when on_ready() has something to
  // do. It returns true when Ctrl-C was pressed: the line that is being typed is dropped.
  struct Beside {
    int fd = -1;
    std::function<bool()> on_ready;
  };

  virtual ~LineReader() = default;

  // The next line without its newline (a pasted text may have newlines inside); none at the end.
  // Throws what on_ready() throws.
  virtual std::optional<std::string> read(const std::string& prompt) = 0;
  // Whether somebody types: mistakes are then told and the reading goes on.
  virtual bool interactive() const = 0;
};

// Reads stdin as it is, nothing is written; with prompts on stderr where stdin is a terminal.
std::unique_ptr<LineReader> make_plain_reader(LineReader::Beside beside);

// Line editing, history and completion on the terminal of stdin and stderr, by libedit: BSD
// licence, in Debian (replxx and linenoise are not), and its input comes from a function of ours,
// so that ranks are watched while somebody types.
//
// The history is kept in `history_file` (not at all if that is empty). Tab completes `commands`,
// and file names behind those that `takes_file` accepts.
struct Completion {
  std::vector<std::string_view> commands;
  std::function<bool(std::string_view command)> takes_file;
};
std::unique_ptr<LineReader> make_line_editor(LineReader::Beside beside,
                                             std::filesystem::path history_file,
                                             Completion completion);

// The line editor where stdin and stderr are a terminal that can move its cursor, else the plain
// reader.
std::unique_ptr<LineReader> make_line_reader(LineReader::Beside beside,
                                             std::filesystem::path history_file,
                                             Completion completion);

}  // namespace troupe::launcher
