// model/jinja/syntax.h: the parts of a template, each of which knows how to be evaluated.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace troupe::model::jinja {

// The names of a template, of a turn of a loop or of a call of a macro.
struct Scope {
  Scope* outer = nullptr;
  std::vector<std::pair<std::string, Value>> names;

  const Value* find(const std::string& name) const;
  void set(const std::string& name, Value value);
};

// One rendering. What hostile templates can make it cost is bounded: by steps, by the depth of
// calls, by the length of what they write.
class Rendering {
 public:
  static constexpr size_t kMaxSteps = 1'000'000;
  static constexpr size_t kMaxOutput = size_t{16} << 20;
  static constexpr int kMaxDepth = 200;

  explicit Rendering(Scope& globals) : globals_(globals), scope_(&globals) {}
  ~Rendering();

  Scope& scope() { return *scope_; }
  Scope& globals() { return globals_; }
  Value look_up(const std::string& name) const;
  void step(size_t work = 1);                        // TemplateError beyond kMaxSteps
  void check_length(const std::string& text) const;  // TemplateError beyond kMaxOutput
  void count_copy(const Value& value);  // a text is checked, and counts as steps by its length
  Value new_namespace(Dict names);      // which templates can change

  // While it lives, names are set in a scope inside `outer`.
  class Inner {
   public:
    Inner(Rendering& rendering, Scope& outer);
    ~Inner();
    Inner(const Inner&) = delete;
    Inner& operator=(const Inner&) = delete;

   private:
    Rendering& rendering_;
    Scope scope_;
    Scope* previous_;
  };

 private:
  Scope& globals_;
  Scope* scope_;
  size_t steps_ = 0;
  int depth_ = 0;
  std::vector<std::shared_ptr<Dict>> namespaces_;  // emptied at the end: one may hold itself
};

class Expression {
 public:
  virtual ~Expression() = default;
  virtual Value evaluate(Rendering& rendering) const = 0;
};
using ExpressionPtr = std::unique_ptr<const Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;

  Arguments evaluate(Rendering& rendering) const;
};

enum class Flow { kNext, kBreak, kContinue };

class Statement {
 public:
  virtual ~Statement() = default;
  virtual Flow render(Rendering& rendering, std::string& out) const = 0;
  int line = 0;
};
using Block = std::vector<std::unique_ptr<const Statement>>;
Flow render_block(const Block& block, Rendering& rendering, std::string& out);

// filters.cc, predicates.cc: nullptr for a name that is not known.
using Filter = Value (*)(const Value& value, const Arguments& arguments);
using Test = bool (*)(const Value& value, const Arguments& arguments);
Filter find_filter(const std::string& name);
Test find_test(const std::string& name);
// methods.cc: `value.name` as a bound method of Python's; undefined when there is none.
Value find_method(const Value& value, const std::string& name);

// parser.cc. Throws TemplateError.
Block parse(std::string_view source);

}  // namespace troupe::model::jinja
