#include "model/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/jinja/value.h"

namespace troupe::model::jinja {
namespace {

constexpr std::string_view kBlanks = " \t\n\r\f\v";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

std::string unix_lines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      i += i + 1 < source.size() && source[i + 1] == '\n';
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(unix_lines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t tag = find_tag();
      add_text(tag);
      if (tag == std::string::npos) break;
      read_tag(tag);
    }
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  size_t find_tag() const {
    for (size_t i = source_.find('{', at_); i != std::string::npos; i = source_.find('{', i + 1))
      if (i + 1 < source_.size() &&
          std::string_view("%{#").find(source_[i + 1]) != std::string::npos)
        return i;
    return std::string::npos;
  }

  // The text up to the tag at `tag`, without what that tag strips.
  void add_text(size_t tag) {
    std::string text = source_.substr(at_, tag == std::string::npos ? tag : tag - at_);
    if (tag != std::string::npos) {
      const char control = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      if (control == '-') {
        text.erase(text.find_last_not_of(kBlanks) + 1);
      } else if (control != '+' && source_[tag + 1] != '{') {
        strip_line_start(text);
      }
    }
    if (!text.empty()) add(Token::Kind::kText, text);
    skip_to(tag == std::string::npos ? source_.size() : tag);
  }

  // Blanks between the beginning of the line and the tag behind `text`.
  void strip_line_start(std::string& text) const {
    const size_t last = text.find_last_not_of(" \t");
    const bool line_starts =
        last == std::string::npos ? at_ == 0 || source_[at_ - 1] == '\n' : text[last] == '\n';
    if (line_starts) text.erase(last + 1);
  }

  void read_tag(size_t tag) {
    const char kind = source_[tag + 1];
    at_ = tag + 2;
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) ++at_;
    if (kind == '#') {
      const size_t end = source_.find("#}", at_);
      if (end == std::string::npos) fail("a comment without its end");
      const bool strips = end > at_ && source_[end - 1] == '-';
      skip_to(end + 2);
      return strips ? skip_blanks() : skip_newline();
    }
    add(kind == '%' ? Token::Kind::kStatementOpen : Token::Kind::kOutputOpen, "");
    read_tokens(kind == '%' ? "%}" : "}}");
  }

  // The tokens of a tag, up to and with its end.
  void read_tokens(std::string_view end) {
    int braces = 0;
    while (true) {
      skip_blanks();
      if (at_ >= source_.size()) fail("a tag without its end");
      const std::string_view rest = std::string_view(source_).substr(at_);
      const size_t control = rest[0] == '-' || rest[0] == '+' ? 1 : 0;
      if (braces == 0 && rest.substr(control).starts_with(end)) {
        add(Token::Kind::kClose, "");
        at_ += control + end.size();
        if (control == 1) return rest[0] == '-' ? skip_blanks() : void();
        return end == "%}" ? skip_newline() : void();
      }
      read_token(rest);
      const Token& token = tokens_.back();
      if (token.kind == Token::Kind::kOperator) braces += (token.text == "{") - (token.text == "}");
    }
  }

  void read_token(std::string_view rest) {
    if (is_name_start(rest[0])) {
      size_t length = 1;
      while (length < rest.size() && (is_name_start(rest[length]) || is_digit(rest[length])))
        ++length;
      return take(Token::Kind::kName, length);
    }
    if (is_digit(rest[0])) return read_number(rest);
    if (rest[0] == '\'' || rest[0] == '"') return read_string(rest);
    for (const char* two : {"==", "!=", "<=", ">=", "//", "**"})
      if (rest.starts_with(two)) return take(Token::Kind::kOperator, 2);
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(rest[0]) == std::string_view::npos)
      fail(fmt::format("'{}' is no token", rest[0]));
    take(Token::Kind::kOperator, 1);
  }

  void read_number(std::string_view rest) {
    size_t length = 0;
    const auto digits = [&] {
      while (length < rest.size() && is_digit(rest[length])) ++length;
    };
    digits();
    Token::Kind kind = Token::Kind::kInteger;
    if (length + 1 < rest.size() && rest[length] == '.' && is_digit(rest[length + 1])) {
      ++length;
      digits();
      kind = Token::Kind::kFloat;
    }
    take(kind, length);
  }

  void read_string(std::string_view rest) {
    std::string value;
    size_t i = 1;
    for (; i < rest.size() && rest[i] != rest[0]; ++i) {
      if (rest[i] != '\\' || i + 1 == rest.size()) {
        value += rest[i];
        continue;
      }
      const char c = rest[++i];
      constexpr std::string_view kEscapes = "nrtbf\\'\"";
      constexpr std::string_view kMeanings = "\n\r\t\b\f\\'\"";
      const size_t known = kEscapes.find(c);
      if (known == std::string_view::npos) value += '\\';  // stays, as in Python
      value += known == std::string_view::npos ? c : kMeanings[known];
    }
    if (i == rest.size()) fail("a string without its end");
    add(Token::Kind::kString, value);
    skip_to(at_ + i + 1);
  }

  void take(Token::Kind kind, size_t length) {
    add(kind, source_.substr(at_, length));
    at_ += length;
  }

  void add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }

  void skip_to(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    at_ = end;
  }
  void skip_blanks() {
    const size_t end = source_.find_first_not_of(kBlanks, at_);
    skip_to(end == std::string::npos ? source_.size() : end);
  }
  void skip_newline() {
    if (at_ < source_.size() && source_[at_] == '\n') skip_to(at_ + 1);
  }

  [[noreturn]] void fail(const std::string& what) const { throw TemplateError(line_, what); }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace troupe::model::jinja
