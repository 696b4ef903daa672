#include <fmt/format.h>

#include "model/jinja/nodes.h"

namespace troupe::model::jinja {

const Value* Scope::find(const std::string& name) const {
  for (const auto& [known, value] : names)
    if (known == name) return &value;
  return nullptr;
}

void Scope::set(const std::string& name, Value value) {
  for (auto& [known, old] : names) {
    if (known != name) continue;
    old = std::move(value);
    return;
  }
  names.emplace_back(name, std::move(value));
}

Rendering::~Rendering() {
  for (const std::shared_ptr<Dict>& names : namespaces_) names->items.clear();
}

Value Rendering::look_up(const std::string& name) const {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->outer)
    if (const Value* value = scope->find(name)) return *value;
  return Undefined{name};
}

void Rendering::step(size_t work) {
  steps_ += work;
  if (steps_ > kMaxSteps) throw TemplateError("takes too many steps");
}

void Rendering::check_length(const std::string& text) const {
  if (text.size() > kMaxOutput) throw TemplateError("writes too much");
}

void Rendering::count_copy(const Value& value) {
  constexpr size_t kBytesPerStep = 1024;
  if (value.string() == nullptr) return;
  check_length(*value.string());
  step(value.string()->size() / kBytesPerStep);
}

Value Rendering::new_namespace(Dict names) {
  names.is_namespace = true;
  namespaces_.push_back(std::make_shared<Dict>(std::move(names)));
  return namespaces_.back();
}

Rendering::Inner::Inner(Rendering& rendering, Scope& outer)
    : rendering_(rendering), scope_{&outer, {}}, previous_(rendering.scope_) {
  if (rendering.depth_ == kMaxDepth) throw TemplateError("loops and macros are nested too deeply");
  ++rendering.depth_;
  rendering.scope_ = &scope_;
}

Rendering::Inner::~Inner() {
  --rendering_.depth_;
  rendering_.scope_ = previous_;
}

Flow render_block(const Block& block, Rendering& rendering, std::string& out) {
  for (const auto& statement : block) {
    try {
      rendering.step();
      if (const Flow flow = statement->render(rendering, out); flow != Flow::kNext) return flow;
      rendering.check_length(out);
    } catch (const TemplateError& error) {
      if (error.has_line()) throw;
      throw TemplateError(statement->line, error.what());
    }
  }
  return Flow::kNext;
}

void assign(Scope& scope, const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) return scope.set(targets[0], value);
  const List elements = value.elements();
  if (elements.size() != targets.size())
    throw TemplateError(fmt::format("{} values for {} names", elements.size(), targets.size()));
  for (size_t i = 0; i < targets.size(); ++i) scope.set(targets[i], elements[i]);
}

Flow Text::render(Rendering&, std::string& out) const {
  out += text;
  return Flow::kNext;
}

Flow Output::render(Rendering& rendering, std::string& out) const {
  out += value->evaluate(rendering).str();
  return Flow::kNext;
}

Flow If::render(Rendering& rendering, std::string& out) const {
  for (const auto& [condition, block] : branches)
    if (condition->evaluate(rendering).truth()) return render_block(block, rendering, out);
  return render_block(otherwise, rendering, out);
}

List For::chosen(Rendering& rendering) const {
  List elements = iterable->evaluate(rendering).elements();
  rendering.step(elements.size());
  if (condition == nullptr) return elements;
  List out;
  for (const Value& element : elements) {
    const Rendering::Inner inner(rendering, rendering.scope());
    assign(rendering.scope(), targets, element);
    if (condition->evaluate(rendering).truth()) out.push_back(element);
  }
  return out;
}

Flow For::turn(Rendering& rendering, const List& elements, size_t i, std::string& out) const {
  constexpr size_t kTurnSteps = 10;  // what `loop` costs
  rendering.step(kTurnSteps);
  const auto number = [](size_t n) { return Value(static_cast<int64_t>(n)); };
  Dict loop;
  loop.items = {
      {"index", number(i + 1)},
      {"index0", number(i)},
      {"revindex", number(elements.size() - i)},
      {"revindex0", number(elements.size() - i - 1)},
      {"first", i == 0},
      {"last", i + 1 == elements.size()},
      {"length", number(elements.size())},
      {"previtem", i > 0 ? elements[i - 1] : Value(Undefined{"previtem"})},
      {"nextitem", i + 1 < elements.size() ? elements[i + 1] : Value(Undefined{"nextitem"})}};
  const Rendering::Inner inner(rendering, rendering.scope());
  rendering.scope().set("loop", std::move(loop));
  assign(rendering.scope(), targets, elements[i]);
  return render_block(body, rendering, out);
}

Flow For::render(Rendering& rendering, std::string& out) const {
  const List elements = chosen(rendering);
  if (elements.empty()) return render_block(otherwise, rendering, out);
  for (size_t i = 0; i < elements.size(); ++i)
    if (turn(rendering, elements, i, out) == Flow::kBreak) break;
  return Flow::kNext;
}

Flow Set::render(Rendering& rendering, std::string&) const {
  Value result;
  if (value != nullptr) {
    result = value->evaluate(rendering);
  } else {
    std::string text;
    render_block(body, rendering, text);
    result = text;
  }
  if (attribute.empty()) {
    assign(rendering.scope(), targets, result);
    return Flow::kNext;
  }
  const Value object = rendering.look_up(targets[0]);
  if (object.dict() == nullptr || !object.dict()->is_namespace)
    throw TemplateError(fmt::format("'{}' is {}, not a namespace", targets[0], object.type_name()));
  object.dict()->set(attribute, std::move(result));
  return Flow::kNext;
}

// A macro sees the names of the template and its own, whoever calls it.
Value Macro::call(Rendering& rendering, const Arguments& arguments) const {
  const Rendering::Inner inner(rendering, rendering.globals());
  arguments.require_at_most(parameters.size(), fmt::format("macro '{}'", name));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto& [parameter, fallback] = parameters[i];
    const Value* given = arguments.find(i, parameter);
    Value argument = Undefined{parameter};
    if (given != nullptr) {
      argument = *given;
    } else if (fallback != nullptr) {
      argument = fallback->evaluate(rendering);
    }
    rendering.scope().set(parameter, std::move(argument));
  }
  std::string out;
  render_block(body, rendering, out);
  return out;
}

Flow Macro::render(Rendering& rendering, std::string&) const {
  rendering.scope().set(name, Function([this, &rendering](const Arguments& arguments) {
                          return call(rendering, arguments);
                        }));
  return Flow::kNext;
}

}  // namespace troupe::model::jinja
