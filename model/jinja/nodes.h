// model/jinja/nodes.h: the kinds of expression and statement.
#pragma once

#include "model/jinja/syntax.h"

namespace troupe::model::jinja {

struct Literal final : Expression {
  explicit Literal(Value constant) : value(std::move(constant)) {}
  Value evaluate(Rendering& rendering) const override;
  Value value;
};

struct Name final : Expression {
  explicit Name(std::string what) : name(std::move(what)) {}
  Value evaluate(Rendering& rendering) const override;
  std::string name;
};

struct ListDisplay final : Expression {
  Value evaluate(Rendering& rendering) const override;
  std::vector<ExpressionPtr> elements;
};

struct DictDisplay final : Expression {
  Value evaluate(Rendering& rendering) const override;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> items;
};

// a.name: a method before a key, as Jinja looks things up.
struct Attribute final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr object;
  std::string name;
};

struct Subscript final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr object, index;
};

// object[begin:end:step], each of them may be missing.
struct Slice final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr object, begin, end, step;
};

struct Call final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr function;
  CallArguments arguments;
};

struct FilterCall final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr value;
  Filter filter = nullptr;
  CallArguments arguments;
};

struct TestCall final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr value;
  Test test = nullptr;
  CallArguments arguments;
};

struct Unary final : Expression {
  enum class Operator { kNot, kMinus, kPlus };
  Value evaluate(Rendering& rendering) const override;
  Operator operation = Operator::kNot;
  ExpressionPtr operand;
};

struct Binary final : Expression {
  using Operation = Value (*)(const Value&, const Value&);
  Value evaluate(Rendering& rendering) const override;
  Operation operation = nullptr;
  ExpressionPtr left, right;
};
// The operation of an operator's token ("+", "in", "not in", ...), nullptr if it is none.
Binary::Operation find_operation(const std::string& token);

// `and`, `or`: the right side is evaluated only when it decides.
struct Logical final : Expression {
  Value evaluate(Rendering& rendering) const override;
  bool is_and = false;
  ExpressionPtr left, right;
};

struct Conditional final : Expression {
  Value evaluate(Rendering& rendering) const override;
  ExpressionPtr condition, then, otherwise;  // otherwise may be missing: undefined
};

struct Text final : Statement {
  explicit Text(std::string what) : text(std::move(what)) {}
  Flow render(Rendering& rendering, std::string& out) const override;
  std::string text;
};

struct Output final : Statement {
  Flow render(Rendering& rendering, std::string& out) const override;
  ExpressionPtr value;
};

struct If final : Statement {
  Flow render(Rendering& rendering, std::string& out) const override;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  Block otherwise;
};

struct For final : Statement {
  Flow render(Rendering& rendering, std::string& out) const override;
  Flow turn(Rendering& rendering, const List& elements, size_t i, std::string& out) const;
  List chosen(Rendering& rendering) const;
  std::vector<std::string> targets;
  ExpressionPtr iterable, condition;  // condition may be missing
  Block body, otherwise;
};

struct Set final : Statement {
  Flow render(Rendering& rendering, std::string& out) const override;
  std::vector<std::string> targets;
  std::string attribute;  // of targets[0], a namespace; empty: names are set
  ExpressionPtr value;    // missing: the text of `body`
  Block body;
};

struct Macro final : Statement {
  Flow render(Rendering& rendering, std::string& out) const override;
  Value call(Rendering& rendering, const Arguments& arguments) const;
  std::string name;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  // with defaults, or none
  Block body;
};

struct Jump final : Statement {
  explicit Jump(Flow where) : flow(where) {}
  Flow render(Rendering&, std::string&) const override { return flow; }
  Flow flow;
};

// Sets one name, or several to the elements of a list.
void assign(Scope& scope, const std::vector<std::string>& targets, const Value& value);

}  // namespace troupe::model::jinja
