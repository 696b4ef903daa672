// model/jinja/lexer.h: a template as text and tags, and the tokens inside tags.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace troupe::model::jinja {

struct Token {
  enum class Kind {
    kText,           // outside of tags
    kStatementOpen,  // {%
    kOutputOpen,     // {{
    kClose,          // %} or }}
    kName,
    kInteger,
    kFloat,
    kString,    // its value, escapes resolved
    kOperator,  // and brackets
    kEnd,       // of the template
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 1;
};

// Cuts a template as Jinja2 does with trim_blocks and lstrip_blocks, the settings that the
// transformers library renders chat templates with: a newline behind a statement or comment, and
// blanks between the beginning of a line and one, are no text; nor is the last newline of all.
// Throws TemplateError.
std::vector<Token> tokenize(std::string_view source);

}  // namespace troupe::model::jinja
