// The grammar of Jinja2's parser, as far as chat templates use it.
#include <fmt/format.h>

#include <stdexcept>

#include "model/jinja/lexer.h"
#include "model/jinja/nodes.h"

namespace troupe::model::jinja {
namespace {

using Kind = Token::Kind;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Block run() {
    Block block = parse_block();
    if (now().kind != Kind::kEnd) fail(fmt::format("'{}' without its beginning", now().text));
    return block;
  }

 private:
  static constexpr int kMaxDepth = 200;  // of expressions and blocks inside each other
  class Deeper {
   public:
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxDepth) parser_.fail("nested too deeply");
    }
    ~Deeper() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  // ---- tokens
  // ------------------------------------------------------------------------------------

  const Token& now() const { return tokens_[at_]; }
  bool is(Kind kind, std::string_view text) const {
    return now().kind == kind && now().text == text;
  }
  bool is_name(std::string_view name) const { return is(Kind::kName, name); }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool accept(Kind kind, std::string_view text) {
    const bool here = is(kind, text);
    if (here) take();
    return here;
  }
  bool accept_operator(std::string_view text) { return accept(Kind::kOperator, text); }
  bool accept_name(std::string_view text) { return accept(Kind::kName, text); }
  void expect_operator(std::string_view text) {
    if (!accept_operator(text)) fail(fmt::format("'{}' expected", text));
  }
  void expect_close() {
    if (now().kind != Kind::kClose) fail(fmt::format("'{}' unexpected", now().text));
    take();
  }
  std::string expect_name() {
    if (now().kind != Kind::kName) fail("a name expected");
    return take().text;
  }
  [[noreturn]] void fail(const std::string& what) const { throw TemplateError(now().line, what); }

  // ---- statements
  // --------------------------------------------------------------------------------

  // Up to a statement that ends a block, whose name is then the next token, or the template's end.
  Block parse_block() {
    const Deeper deeper(*this);
    Block block;
    while (now().kind != Kind::kEnd) {
      if (now().kind == Kind::kText) {
        block.push_back(std::make_unique<Text>(take().text));
      } else if (now().kind == Kind::kOutputOpen) {
        auto output = std::make_unique<Output>();
        output->line = take().line;
        output->value = parse_tuple();
        expect_close();
        block.push_back(std::move(output));
      } else {
        const int line = take().line;
        if (now().text.starts_with("end") || now().text == "else" || now().text == "elif")
          return block;
        auto statement = parse_statement();
        statement->line = line;
        block.push_back(std::move(statement));
      }
    }
    return block;
  }

  std::unique_ptr<Statement> parse_statement() {
    const std::string name = expect_name();
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "break" || name == "continue") {
      expect_close();
      return std::make_unique<Jump>(name == "break" ? Flow::kBreak : Flow::kContinue);
    }
    if (name == "generation") return parse_generation();
    fail(
        fmt::format("the statement '{}' is not supported; "
                    "supported: if, for, set, macro, break, continue",
                    name));
  }

  void expect_end(std::string_view name) {
    if (!accept_name(name)) fail(fmt::format("'{}' expected", name));
    expect_close();
  }

  std::unique_ptr<Statement> parse_if() {
    auto statement = std::make_unique<If>();
    do {
      ExpressionPtr condition = parse_tuple();
      expect_close();
      statement->branches.emplace_back(std::move(condition), parse_block());
    } while (accept_name("elif"));
    if (accept_name("else")) {
      expect_close();
      statement->otherwise = parse_block();
    }
    expect_end("endif");
    return statement;
  }

  std::unique_ptr<Statement> parse_for() {
    auto statement = std::make_unique<For>();
    statement->targets = parse_targets();
    if (!accept_name("in")) fail("'in' expected");
    statement->iterable = parse_or();
    if (accept_name("if")) statement->condition = parse_expression();
    expect_close();
    statement->body = parse_block();
    if (accept_name("else")) {
      expect_close();
      statement->otherwise = parse_block();
    }
    expect_end("endfor");
    return statement;
  }

  std::unique_ptr<Statement> parse_set() {
    auto statement = std::make_unique<Set>();
    statement->targets = parse_targets();
    if (statement->targets.size() == 1 && accept_operator("."))
      statement->attribute = expect_name();
    if (accept_operator("=")) {
      statement->value = parse_tuple();
      expect_close();
    } else {
      expect_close();
      statement->body = parse_block();
      expect_end("endset");
    }
    return statement;
  }

  std::unique_ptr<Statement> parse_macro() {
    auto statement = std::make_unique<Macro>();
    statement->name = expect_name();
    expect_operator("(");
    while (!accept_operator(")")) {
      std::string parameter = expect_name();
      ExpressionPtr fallback = accept_operator("=") ? parse_expression() : nullptr;
      statement->parameters.emplace_back(std::move(parameter), std::move(fallback));
      if (!is(Kind::kOperator, ")")) expect_operator(",");
    }
    expect_close();
    statement->body = parse_block();
    expect_end("endmacro");
    return statement;
  }

  // Marks what the model wrote, for those who train it: here just its contents.
  std::unique_ptr<Statement> parse_generation() {
    expect_close();
    auto statement = std::make_unique<If>();
    statement->otherwise = parse_block();
    expect_end("endgeneration");
    return statement;
  }

  std::vector<std::string> parse_targets() {
    const bool bracketed = accept_operator("(");
    std::vector<std::string> names{expect_name()};
    while (accept_operator(",")) names.push_back(expect_name());
    if (bracketed) expect_operator(")");
    return names;
  }

  // ---- expressions, the loosest first
  // ------------------------------------------------------------

  ExpressionPtr parse_tuple() {
    ExpressionPtr first = parse_expression();
    if (!is(Kind::kOperator, ",")) return first;
    auto list = std::make_unique<ListDisplay>();
    list->elements.push_back(std::move(first));
    while (accept_operator(",")) {
      if (now().kind == Kind::kClose || is(Kind::kOperator, ")")) break;
      list->elements.push_back(parse_expression());
    }
    return list;
  }

  ExpressionPtr parse_expression() {
    const Deeper deeper(*this);
    ExpressionPtr value = parse_or();
    while (accept_name("if")) {
      auto conditional = std::make_unique<Conditional>();
      conditional->condition = parse_or();
      conditional->then = std::move(value);
      if (accept_name("else")) conditional->otherwise = parse_expression();
      value = std::move(conditional);
    }
    return value;
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = logical(false, std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = logical(true, std::move(left), parse_not());
    return left;
  }

  static ExpressionPtr logical(bool is_and, ExpressionPtr left, ExpressionPtr right) {
    auto expression = std::make_unique<Logical>();
    expression->is_and = is_and;
    expression->left = std::move(left);
    expression->right = std::move(right);
    return expression;
  }

  ExpressionPtr parse_not() {
    const Deeper deeper(*this);
    if (!accept_name("not")) return parse_comparison();
    return unary(Unary::Operator::kNot, parse_not());
  }

  static ExpressionPtr unary(Unary::Operator operation, ExpressionPtr operand) {
    auto expression = std::make_unique<Unary>();
    expression->operation = operation;
    expression->operand = std::move(operand);
    return expression;
  }

  static ExpressionPtr binary(const std::string& operation, ExpressionPtr left,
                              ExpressionPtr right) {
    auto expression = std::make_unique<Binary>();
    expression->operation = find_operation(operation);
    expression->left = std::move(left);
    expression->right = std::move(right);
    return expression;
  }

  ExpressionPtr parse_comparison() {
    ExpressionPtr left = parse_sum();
    const std::string operation = accept_comparison();
    if (operation.empty()) return left;
    left = binary(operation, std::move(left), parse_sum());
    if (!accept_comparison().empty())
      fail("comparisons in a chain are not supported; join them by 'and'");
    return left;
  }

  std::string accept_comparison() {
    for (const char* text : {"==", "!=", "<", ">", "<=", ">="})
      if (accept_operator(text)) return text;
    if (accept_name("in")) return "in";
    if (is_name("not") && tokens_[at_ + 1].kind == Kind::kName && tokens_[at_ + 1].text == "in") {
      at_ += 2;
      return "not in";
    }
    return "";
  }

  ExpressionPtr parse_sum() {
    ExpressionPtr left = parse_concatenation();
    while (is(Kind::kOperator, "+") || is(Kind::kOperator, "-")) {
      const std::string operation = take().text;
      left = binary(operation, std::move(left), parse_concatenation());
    }
    return left;
  }

  ExpressionPtr parse_concatenation() {
    ExpressionPtr left = parse_product();
    while (accept_operator("~")) left = binary("~", std::move(left), parse_product());
    return left;
  }

  ExpressionPtr parse_product() {
    ExpressionPtr left = parse_unary(true);
    while (is(Kind::kOperator, "*") || is(Kind::kOperator, "/") || is(Kind::kOperator, "//") ||
           is(Kind::kOperator, "%")) {
      const std::string operation = take().text;
      left = binary(operation, std::move(left), parse_unary(true));
    }
    return left;
  }

  ExpressionPtr parse_unary(bool with_filters) {
    const Deeper deeper(*this);
    ExpressionPtr value;
    if (accept_operator("-")) {
      value = unary(Unary::Operator::kMinus, parse_unary(false));
    } else if (accept_operator("+")) {
      value = unary(Unary::Operator::kPlus, parse_unary(false));
    } else {
      value = parse_primary();
    }
    value = parse_postfix(std::move(value));
    return with_filters ? parse_filters(std::move(value)) : std::move(value);
  }

  ExpressionPtr parse_primary() {
    if (accept_operator("(")) {
      ExpressionPtr value =
          is(Kind::kOperator, ")") ? std::make_unique<ListDisplay>() : parse_tuple();
      expect_operator(")");
      return value;
    }
    if (accept_operator("[")) return parse_list();
    if (accept_operator("{")) return parse_dict();
    if (now().kind == Kind::kString) return parse_string();
    if (now().kind == Kind::kInteger || now().kind == Kind::kFloat) return parse_number();
    if (now().kind != Kind::kName) fail(fmt::format("'{}' begins no expression", now().text));
    const std::string name = take().text;
    if (name == "true" || name == "True") return std::make_unique<Literal>(true);
    if (name == "false" || name == "False") return std::make_unique<Literal>(false);
    if (name == "none" || name == "None") return std::make_unique<Literal>(Value());
    return std::make_unique<Name>(name);
  }

  // 'a' 'b' is 'ab'.
  ExpressionPtr parse_string() {
    std::string text;
    while (now().kind == Kind::kString) text += take().text;
    return std::make_unique<Literal>(std::move(text));
  }

  ExpressionPtr parse_number() {
    const Token token = take();
    try {
      if (token.kind == Kind::kFloat) return std::make_unique<Literal>(std::stod(token.text));
      return std::make_unique<Literal>(int64_t{std::stoll(token.text)});
    } catch (const std::out_of_range&) {
      throw TemplateError(token.line, fmt::format("{} is too large", token.text));
    }
  }

  ExpressionPtr parse_list() {
    auto list = std::make_unique<ListDisplay>();
    while (!accept_operator("]")) {
      list->elements.push_back(parse_expression());
      if (!is(Kind::kOperator, "]")) expect_operator(",");
    }
    return list;
  }

  ExpressionPtr parse_dict() {
    auto dict = std::make_unique<DictDisplay>();
    while (!accept_operator("}")) {
      ExpressionPtr key = parse_expression();
      expect_operator(":");
      dict->items.emplace_back(std::move(key), parse_expression());
      if (!is(Kind::kOperator, "}")) expect_operator(",");
    }
    return dict;
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    while (true) {
      if (accept_operator(".")) {
        auto attribute = std::make_unique<Attribute>();
        attribute->object = std::move(value);
        attribute->name = expect_name();
        value = std::move(attribute);
      } else if (accept_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (is(Kind::kOperator, "(")) {
        auto call = std::make_unique<Call>();
        call->function = std::move(value);
        call->arguments = parse_arguments();
        value = std::move(call);
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr object) {
    const auto ends = [this] { return is(Kind::kOperator, ":") || is(Kind::kOperator, "]"); };
    ExpressionPtr first = ends() ? nullptr : parse_expression();
    if (!is(Kind::kOperator, ":")) {
      expect_operator("]");
      auto subscript = std::make_unique<Subscript>();
      if (first == nullptr) fail("an index expected");
      subscript->object = std::move(object);
      subscript->index = std::move(first);
      return subscript;
    }
    auto slice = std::make_unique<Slice>();
    slice->object = std::move(object);
    slice->begin = std::move(first);
    take();
    if (!ends()) slice->end = parse_expression();
    if (accept_operator(":") && !ends()) slice->step = parse_expression();
    expect_operator("]");
    return slice;
  }

  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_operator("(");
    while (!accept_operator(")")) {
      const bool named = now().kind == Kind::kName && tokens_[at_ + 1].kind == Kind::kOperator &&
                         tokens_[at_ + 1].text == "=";
      if (named) {
        const std::string name = take().text;
        take();
        arguments.named.emplace_back(name, parse_expression());
      } else {
        if (!arguments.named.empty()) fail("a positional argument behind a named one");
        arguments.positional.push_back(parse_expression());
      }
      if (!is(Kind::kOperator, ")")) expect_operator(",");
    }
    return arguments;
  }

  ExpressionPtr parse_filters(ExpressionPtr value) {
    while (true) {
      if (accept_operator("|")) {
        auto call = std::make_unique<FilterCall>();
        call->value = std::move(value);
        const std::string name = expect_name();
        call->filter = find_filter(name);
        if (call->filter == nullptr) fail(fmt::format("the filter '{}' is not supported", name));
        if (is(Kind::kOperator, "(")) call->arguments = parse_arguments();
        value = parse_postfix(std::move(call));
      } else if (accept_name("is")) {
        value = parse_test(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_test(ExpressionPtr value) {
    const bool negated = accept_name("not");
    auto call = std::make_unique<TestCall>();
    call->value = std::move(value);
    const std::string name = expect_name();
    call->test = find_test(name);
    if (call->test == nullptr) fail(fmt::format("the test '{}' is not supported", name));
    const bool literal = now().kind == Kind::kString || now().kind == Kind::kInteger;
    if (is(Kind::kOperator, "(")) {
      call->arguments = parse_arguments();
    } else if (literal || is(Kind::kOperator, "[")) {
      call->arguments.positional.push_back(parse_postfix(parse_primary()));
    }
    if (!negated) return call;
    return unary(Unary::Operator::kNot, std::move(call));
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Block parse(std::string_view source) { return Parser(source).run(); }

}  // namespace troupe::model::jinja
