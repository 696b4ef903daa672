#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace troupe {

const std::vector<std::string> LogOptions::kLevels{"debug", "info", "warn", "error", "off"};
const std::vector<std::string> LogOptions::kFormats{"text", "json"};
const std::vector<std::string> LogOptions::kSubsystems{"launcher", "scheduler", "rank"};

namespace {

struct State {
  LogOptions options;
  int rank = -1;
  spdlog::sink_ptr file;
};
State& state() {
  static State state;
  return state;
}

// Formatters run in the thread that logs: what they need beside the message waits here.
thread_local LogFields fields_of_line;

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::off;
}

std::string_view level_name(spdlog::level::level_enum level) {
  const auto name = spdlog::level::to_string_view(level);
  return {name.data(), name.size()};
}

// One object on a line: ts (seconds since 1970), level, rank (-1: the launcher), subsystem, actor,
// step, request (the last three where there is one), text.
class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::chrono::duration<double> since = message.time.time_since_epoch();
    nlohmann::ordered_json line{
        {"ts", since.count()},
        {"level", level_name(message.level)},
        {"rank", state().rank},
        {"subsystem", std::string(message.logger_name.data(), message.logger_name.size())}};
    const LogFields& fields = fields_of_line;
    if (!fields.actor.empty()) line["actor"] = fields.actor;
    if (fields.step >= 0) line["step"] = fields.step;
    if (fields.request >= 0) line["request"] = fields.request;
    line["text"] = std::string(message.payload.data(), message.payload.size());
    const std::string text =
        line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n';
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

void set_format(spdlog::sinks::sink& sink, const std::string& format, const char* pattern) {
  if (format == "json")
    sink.set_formatter(std::make_unique<JsonFormatter>());
  else
    sink.set_pattern(pattern);
}

std::vector<spdlog::sink_ptr> make_sinks(const LogOptions& options, int rank) {
  std::vector<spdlog::sink_ptr> sinks;
  if (rank < 0) {
    sinks.push_back(std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    set_format(*sinks.back(), options.format, "%^%l%$ %v");
  }
  if (options.directory.empty()) return sinks;
  const auto file =
      options.directory / (rank < 0 ? "launcher.log" : fmt::format("rank_{}.log", rank));
  try {
    std::filesystem::create_directories(options.directory);
    state().file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(file.string(), true);
  } catch (const std::exception&) {
    throw_user_error("--log-dir: {} cannot be written", file.string());
  }
  set_format(*state().file, options.format, "%Y-%m-%d %H:%M:%S.%e %l %n %v");
  sinks.push_back(state().file);
  return sinks;
}

std::string in_words(std::string_view text, const LogFields& fields) {
  std::string words;
  if (!fields.actor.empty()) words += fmt::format("{} ", fields.actor);
  if (fields.step >= 0) words += fmt::format("step {} ", fields.step);
  if (fields.request >= 0) words += fmt::format("request {} ", fields.request);
  return words.empty() ? std::string(text)
                       : fmt::format("[{}] {}", words.substr(0, words.size() - 1), text);
}

}  // namespace

std::vector<std::string> LogOptions::arguments() const {
  if (directory.empty()) return {};
  std::vector<std::string> words{"--log-level", level,       "--log-format",
                                 format,        "--log-dir", directory};
  if (!subsystems.empty()) {
    words.push_back("--log-subsystems");
    words.push_back(fmt::format("{}", fmt::join(subsystems, ",")));
  }
  return words;
}

void start_log(const LogOptions& options, int rank) {
  state().options = options;
  state().rank = rank;
  const std::vector<spdlog::sink_ptr> sinks = make_sinks(options, rank);
  spdlog::drop_all();
  for (const std::string& subsystem : LogOptions::kSubsystems) {
    const auto logger = std::make_shared<spdlog::logger>(subsystem, sinks.begin(), sinks.end());
    const bool wanted =
        options.subsystems.empty() ||
        std::ranges::find(options.subsystems, subsystem) != options.subsystems.end();
    logger->set_level(wanted && !sinks.empty() ? spdlog::level::from_str(options.level)
                                               : spdlog::level::off);
    logger->flush_on(spdlog::level::debug);  // a process that is killed has said what it said
    spdlog::register_logger(logger);
  }
  spdlog::set_default_logger(spdlog::get("launcher"));
}

const LogOptions& log_options() { return state().options; }

bool logs(LogLevel level, std::string_view subsystem) {
  const auto logger = spdlog::get(std::string(subsystem));
  return logger != nullptr && logger->should_log(spdlog_level(level));
}

void log(LogLevel level, std::string_view subsystem, std::string_view text,
         const LogFields& fields) {
  const auto logger = spdlog::get(std::string(subsystem));
  if (logger == nullptr || !logger->should_log(spdlog_level(level))) return;
  fields_of_line = fields;
  const bool json = state().options.format == "json";
  logger->log(spdlog_level(level), "{}", json ? std::string(text) : in_words(text, fields));
  fields_of_line = {};
}

void log_to_file(LogLevel level, std::string_view subsystem, std::string_view text) {
  if (state().file == nullptr) return;
  spdlog::logger logger(std::string(subsystem), state().file);
  logger.log(spdlog_level(level), "{}", text);
  logger.flush();
}

}  // namespace troupe
