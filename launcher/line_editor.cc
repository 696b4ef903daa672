#include <fcntl.h>
#include <histedit.h>
#include <sys/file.h>

#include <algorithm>
#include <clocale>
#include <cstdio>
#include <exception>

#include "base/error.h"
#include "base/memory.h"
#include "launcher/input_wait.h"
#include "launcher/line_reader.h"
#include "model/utf8.h"

namespace troupe::launcher {

namespace {

constexpr int kHistoryLines = 1000;
// A terminal in bracketed paste mode puts what is pasted between two sequences of its own, so that
// the newlines inside are not taken for Enter.
constexpr char kPasteModeOn[] = "\033[?2004h", kPasteModeOff[] = "\033[?2004l";
constexpr char kPasteBegin[] = "\033[200~";
constexpr std::wstring_view kPasteEnd = L"\033[201~";

class LineEditor final : public LineReader {
 public:
  LineEditor(Beside beside, std::filesystem::path history_file, Completion completion)
      : beside_(std::move(beside)),
        history_file_(std::move(history_file)),
        completion_(std::move(completion)) {
    set_locale();
    editor_ = ::el_init("troupe", stdin, stderr, stderr);
    history_ = ::history_init();
    if (editor_ == nullptr || history_ == nullptr) throw std::runtime_error("libedit: el_init");
    configure();
    keep_keys();
    load_history();
  }
  ~LineEditor() override {
    ::history_end(history_);
    ::el_end(editor_);
  }
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  std::optional<std::string> read(const std::string& prompt) override {
    prompt_ = prompt;
    for (;;) {
      const Input end = edit();
      if (failure_) std::rethrow_exception(std::exchange(failure_, {}));
      if (end == Input::kCancelled) continue;
      if (end == Input::kEnd) {
        std::fputc('\n', stderr);
        return std::nullopt;
      }
      remember();
      return line_;
    }
  }

  bool interactive() const override { return true; }

 private:
  static LineEditor& of(EditLine* editor) {
    LineEditor* self = nullptr;
    ::el_get(editor, EL_CLIENTDATA, &self);
    return *self;
  }

  // libedit counts columns by the locale; where that is none of UTF-8 the one built in is.
  static void set_locale() {
    std::setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
  }

  void configure() {
    ::el_set(editor_, EL_CLIENTDATA, this);
    ::el_set(
        editor_, EL_PROMPT, +[](EditLine* e) { return of(e).prompt_.data(); });
    ::el_set(editor_, EL_EDITOR, "emacs");
    ::el_set(editor_, EL_SIGNAL, 1);  // stop and continue, changes of the window
    ::el_set(
        editor_, EL_GETCFN, +[](EditLine* e, wchar_t* c) { return of(e).next_character(c); });
    ::el_set(editor_, EL_HIST, ::history, history_);
    ::el_set(
        editor_, EL_ADDFN, "paste", "insert what is pasted",
        +[](EditLine* e, int) { return of(e).paste(); });
    ::el_set(
        editor_, EL_ADDFN, "complete", "complete a command or a file name",
        +[](EditLine* e, int key) { return of(e).complete(key); });
    ::el_set(editor_, EL_BIND, kPasteBegin, "paste", nullptr);
    ::el_set(editor_, EL_BIND, "^I", "complete", nullptr);
    ::el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    ::el_source(editor_, nullptr);  // ~/.editrc has the last word
  }

  // What is typed while an answer is written is not echoed into it but kept for the next line.
  void keep_keys() { ::el_set(editor_, EL_PREP_TERM, 1); }

  // One line into line_, as the terminal's editor gives it.
  Input edit() {
    end_ = Input::kBytes;
    std::fputs(kPasteModeOn, stderr);
    int length = 0;
    const char* text = ::el_gets(editor_, &length);
    std::fputs(kPasteModeOff, stderr);
    keep_keys();
    if (text == nullptr || length <= 0) {
      if (end_ == Input::kCancelled) std::fputs("^C\n", stderr);
      return end_ == Input::kCancelled ? end_ : Input::kEnd;
    }
    line_.assign(text, static_cast<size_t>(length));
    if (line_.ends_with('\n')) line_.pop_back();
    return Input::kBytes;
  }

  // What libedit calls for every character: 1, or 0 when there is none, after which el_gets
  // returns. No exception may pass through it: it restores the terminal.
  int next_character(wchar_t* character) {
    try {
      while (!take_character(*character)) {
        const Input input = wait_for_input(beside_, bytes_);
        if (input == Input::kResumed) ::el_set(editor_, EL_REFRESH);
        if (input != Input::kCancelled && input != Input::kEnd) continue;
        if (input == Input::kCancelled) bytes_.clear();
        end_ = input;
        return 0;
      }
      return 1;
    } catch (...) {
      failure_ = std::current_exception();
      return 0;
    }
  }

  bool take_character(wchar_t& character) {
    if (bytes_.empty()) return false;
    const model::Utf8Unit unit = model::first_utf8(bytes_);
    if (unit.kind == model::Utf8Unit::Kind::kIncomplete) return false;
    const bool valid = unit.kind == model::Utf8Unit::Kind::kCharacter;
    character = static_cast<wchar_t>(valid ? unit.code_point : U'\uFFFD');
    bytes_.erase(0, unit.length);
    return true;
  }

  unsigned char paste() {
    std::wstring text;
    wchar_t character;
    while (!text.ends_with(kPasteEnd)) {
      if (::el_wgetc(editor_, &character) != 1) return CC_EOF;
      // Terminals send CR or CRLF for the end of a line; the line discipline may swap the two.
      const bool pair = (character == L'\n' && text.ends_with(L'\r')) ||
                        (character == L'\r' && text.ends_with(L'\n'));
      if (!pair) text += character;
    }
    text.resize(text.size() - kPasteEnd.size());
    std::ranges::replace(text, L'\r', L'\n');
    std::erase(text, L'\0');
    if (!text.empty()) ::el_winsertstr(editor_, text.c_str());
    return CC_REFRESH;
  }

  unsigned char complete(int key) {
    const LineInfo* info = ::el_line(editor_);
    const std::string_view typed(info->buffer, static_cast<size_t>(info->cursor - info->buffer));
    if (const size_t space = typed.find(' '); space != std::string_view::npos)
      return completion_.takes_file(typed.substr(0, space)) ? ::_el_fn_complete(editor_, key)
                                                            : CC_ERROR;
    std::vector<std::string_view> found;
    std::ranges::copy_if(completion_.commands, std::back_inserter(found),
                         [&](std::string_view command) { return command.starts_with(typed); });
    if (typed.empty() || found.empty()) return CC_ERROR;
    if (found.size() == 1) return insert(std::string(found[0].substr(typed.size())) + ' ');
    std::string list = "\n";
    for (const std::string_view command : found) list += std::string(command) + "  ";
    std::fputs((list + '\n').c_str(), stderr);
    return CC_REDISPLAY;
  }
  unsigned char insert(const std::string& text) {
    ::el_insertstr(editor_, text.c_str());
    return CC_REFRESH;
  }

  void load_history() {
    HistEvent event;
    ::history(history_, &event, H_SETSIZE, kHistoryLines);
    ::history(history_, &event, H_SETUNIQUE, 1);
    if (history_file_.empty()) return;
    std::error_code ignored;  // a chat without history is a chat all the same
    std::filesystem::create_directories(history_file_.parent_path(), ignored);
    ::history(history_, &event, H_LOAD, history_file_.c_str());
  }

  // Written at once (mode 0600): the process may be killed. Other chats write to the same file: the
  // history becomes what they have made of it, and this line.
  void remember() {
    if (line_.find_first_not_of(" \n\t") == std::string::npos) return;
    HistEvent event;
    const Fd lock = lock_history();
    if (lock) {
      ::history(history_, &event, H_CLEAR);
      ::history(history_, &event, H_LOAD, history_file_.c_str());
    }
    ::history(history_, &event, H_ENTER, line_.c_str());
    if (!lock) return;
    const std::filesystem::path whole = beside_history(".new");
    std::error_code ignored;
    if (::history(history_, &event, H_SAVE, whole.c_str()) >= 0)
      std::filesystem::rename(whole, history_file_, ignored);
  }

  // Nobody else reads and writes the history while this lives. Empty where there is no file.
  Fd lock_history() const {
    if (history_file_.empty()) return {};
    Fd lock(::open(beside_history(".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (lock && ::flock(lock.get(), LOCK_EX) != 0) return {};
    return lock;
  }
  std::filesystem::path beside_history(const char* ending) const {
    return std::filesystem::path(history_file_) += ending;
  }

  Beside beside_;
  std::filesystem::path history_file_;
  Completion completion_;
  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
  std::string prompt_, line_, bytes_;
  Input end_ = Input::kBytes;
  std::exception_ptr failure_;
};

}  // namespace

std::unique_ptr<LineReader> make_line_editor(LineReader::Beside beside,
                                             std::filesystem::path history_file,
                                             Completion completion) {
  return std::make_unique<LineEditor>(std::move(beside), std::move(history_file),
                                      std::move(completion));
}

}  // namespace troupe::launcher
