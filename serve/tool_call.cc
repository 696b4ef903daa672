#include "serve/tool_call.h"

#include "serve/api_error.h"
#include "serve/request_fields.h"

namespace troupe::serve {

namespace {

constexpr const char* kSpace = " \t\r\n";

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// NAME and a block of JSON below it.
std::optional<ToolCall> fenced_call(const std::string& text) {
  constexpr std::string_view kOpen = "```json", kClose = "```";
  const size_t open = text.find(kOpen);
  if (open == std::string::npos) return std::nullopt;
  const size_t first = open + kOpen.size();
  const size_t close = text.rfind(kClose);
  const size_t length = close > open ? close - first : std::string::npos;
  return ToolCall{"", trimmed(text.substr(0, open)), trimmed(text.substr(first, length))};
}

// "functions.NAME:0"
ToolCall kimi_call(const std::string& id, const std::string& arguments) {
  constexpr std::string_view kPrefix = "functions.";
  std::string name = id.substr(0, id.rfind(':'));
  if (name.starts_with(kPrefix)) name.erase(0, kPrefix.size());
  return {id, name, arguments};
}

std::optional<ToolCall> json_call(const std::string& text) {
  try {
    const Json json = parse_bounded_json(text);
    if (!json.is_object() || !json.contains("name") || !json.at("name").is_string())
      return std::nullopt;
    return ToolCall{"", json.at("name").get<std::string>(),
                    json.value("arguments", Json::object()).dump()};
  } catch (const ApiError&) {
    return std::nullopt;
  }
}

}  // namespace

int32_t token_of(const model::Tokenizer& tokenizer, const char* text) {
  const std::vector<int32_t> ids = tokenizer.encode(text, false);
  return ids.size() == 1 ? ids[0] : -1;
}

ToolFormat ToolFormat::of(const model::Tokenizer& t) {
  const auto marks = [&](Kind kind, const char* begin, const char* separator, const char* end,
                         const char* section_begin, const char* section_end) {
    ToolFormat format{.kind = kind,
                      .begin = token_of(t, begin),
                      .separator = token_of(t, separator),
                      .end = token_of(t, end),
                      .section_begin = token_of(t, section_begin),
                      .section_end = token_of(t, section_end)};
    return format.begin >= 0 && format.end >= 0 ? format : ToolFormat();
  };
  ToolFormat format =
      marks(Kind::kDeepSeek, "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>");
  if (format.kind == Kind::kNone)
    format =
        marks(Kind::kKimi, "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
              "<|tool_call_end|>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>");
  if (format.kind == Kind::kNone)
    format = marks(Kind::kQwen, "<tool_call>", "", "</tool_call>", "", "");
  return format;
}

std::optional<ToolCall> parse_tool_call(ToolFormat::Kind kind, const std::string& before,
                                        const std::string& after) {
  switch (kind) {
    case ToolFormat::Kind::kNone:
      return std::nullopt;
    case ToolFormat::Kind::kDeepSeek:
      if (trimmed(before) == "function") return fenced_call(after);
      return ToolCall{"", trimmed(before), trimmed(after)};
    case ToolFormat::Kind::kKimi:
      return kimi_call(trimmed(before), trimmed(after));
    case ToolFormat::Kind::kQwen:
      return json_call(before);
  }
  return std::nullopt;
}

std::string called_function(const std::string& channel) {
  constexpr std::string_view kTo = "to=functions.";
  const size_t to = channel.find(kTo);
  if (to == std::string::npos) return "";
  const size_t first = to + kTo.size();
  return channel.substr(first, channel.find_first_of(" \t\n<", first) - first);
}

}  // namespace troupe::serve
