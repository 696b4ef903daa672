#include "model/chat_template.h"

#include <array>

#include "base/checked_size.h"
#include "base/error.h"
#include "base/memory.h"
#include "model/input_file.h"
#include "model/jinja/syntax.h"
#include "model/json_file.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using namespace jinja;

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;  // the published ones have under 20 KB
constexpr int64_t kMaxRange = 100'000;

Value raise_exception(const Arguments& arguments) {
  const Value* message = arguments.find(0, "message");
  throw TemplateError("refuses the conversation: " +
                      (message == nullptr ? std::string("no reason given") : message->str()));
}

Value range(const Arguments& arguments) {
  const List& given = arguments.positional;
  if (given.empty() || given.size() > 3) throw TemplateError("range: one to three integers");
  const int64_t begin = given.size() > 1 ? given[0].integer() : 0;
  const int64_t end = given[given.size() > 1 ? 1 : 0].integer();
  const int64_t step = given.size() > 2 ? given[2].integer() : 1;
  if (step == 0) throw TemplateError("range: a step of 0");
  List out;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(out.size()) == kMaxRange) throw TemplateError("range: too long");
    out.emplace_back(i);
    const auto next = checked_add(i, step);
    if (!next) break;
    i = *next;
  }
  return out;
}

Dict dict_of(const Arguments& arguments) {
  Dict out;
  if (const Value* first = arguments.find(0, ""); first != nullptr && first->dict() != nullptr)
    out = *first->dict();
  for (const auto& [name, value] : arguments.named) out.set(name, value);
  return out;
}

Value strftime_now(const Arguments& arguments, std::time_t now) {
  const Value* format = arguments.find(0, "format");
  if (format == nullptr) throw TemplateError("strftime_now: needs a format");
  std::tm local{};
  ::localtime_r(&now, &local);
  std::array<char, 256> text{};
  const size_t length =
      std::strftime(text.data(), text.size(), format->text("a format").c_str(), &local);
  return std::string(text.data(), length);
}

std::string read_template(const fs::path& file) {
  const InputFile input(file);
  if (input.size() > kMaxTemplateBytes)
    throw_user_error("{}: {} bytes are no chat template", file.string(), input.size());
  std::string text(input.text());
  input.require_unchanged();
  return text;
}

json tokenizer_config(const fs::path& directory) {
  const fs::path file = directory / "tokenizer_config.json";
  return fs::exists(file) ? read_json_file(file) : json::object();
}

// A string, or a list of {"name", "template"} of which "default" is taken.
const std::string* find_template(const json& config) {
  const auto found = config.is_object() ? config.find("chat_template") : config.end();
  if (found == config.end()) return nullptr;
  if (found->is_string()) return found->get_ptr<const std::string*>();
  if (!found->is_array()) return nullptr;
  for (const json& entry : *found)
    if (entry.is_object() && entry.value("name", json()) == "default" &&
        entry.value("template", json()).is_string())
      return entry.at("template").get_ptr<const std::string*>();
  return nullptr;
}

}  // namespace

struct ChatTemplate::Impl {
  Impl(const std::string& source, std::string named, const json& config) : where(std::move(named)) {
    located([&] { block = parse(source); });
    if (!config.is_object()) return;
    for (const auto& [key, value] : config.items()) {
      if (!key.ends_with("_token")) continue;
      const json& text = value.is_object() ? value.value("content", json()) : value;
      if (text.is_string()) special_tokens[key] = text.get<std::string>();
    }
  }

  template <class Action>
  void located(const Action& action) const {
    try {
      action();
    } catch (const TemplateError& error) {
      throw_user_error("{}: chat template: {}", where, printable(error.what()));
    }
  }

  std::string where;  // for errors
  nlohmann::ordered_json special_tokens = nlohmann::ordered_json::object();
  Block block;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

ChatTemplate ChatTemplate::of_file(const fs::path& file, const fs::path& directory) {
  return ChatTemplate(
      std::make_unique<Impl>(read_template(file), file.string(), tokenizer_config(directory)));
}

bool ChatTemplate::exists(const fs::path& directory) {
  return fs::exists(directory / "chat_template.jinja") ||
         find_template(tokenizer_config(directory)) != nullptr;
}

ChatTemplate ChatTemplate::of_checkpoint(const fs::path& directory) {
  const fs::path file = directory / "chat_template.jinja";
  if (fs::exists(file)) return of_file(file, directory);
  const json config = tokenizer_config(directory);
  const std::string* source = find_template(config);
  if (source == nullptr)
    throw_user_error(
        "{}: has no chat template, neither chat_template.jinja nor one in tokenizer_config.json; "
        "name one with --chat-template",
        directory.string());
  return ChatTemplate(
      std::make_unique<Impl>(*source, (directory / "tokenizer_config.json").string(), config));
}

std::string ChatTemplate::render(const Conversation& conversation) const {
  std::string out;
  impl_->located([&] {
    Scope globals;
    Rendering rendering(globals);
    globals.set("raise_exception", Function(raise_exception));
    globals.set("range", Function(range));
    globals.set("dict", Function([](const Arguments& a) { return Value(dict_of(a)); }));
    globals.set("namespace", Function([&rendering](const Arguments& a) {
                  return rendering.new_namespace(dict_of(a));
                }));
    globals.set("strftime_now", Function([&conversation](const Arguments& a) {
                  return strftime_now(a, conversation.now);
                }));
    for (const auto& [name, value] : impl_->special_tokens.items())
      globals.set(name, Value::of(value));
    globals.set("messages", Value::of(conversation.messages));
    globals.set("tools", Value::of(conversation.tools));
    globals.set("documents", Value());
    globals.set("add_generation_prompt", conversation.add_generation_prompt);
    if (conversation.variables.is_object())
      for (const auto& [name, value] : conversation.variables.items())
        globals.set(name, Value::of(value));
    render_block(impl_->block, rendering, out);
  });
  return out;
}

}  // namespace troupe::model
