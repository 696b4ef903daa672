#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/output_path.h"
#include "launcher/commands.h"
#include "launcher/trace_files.h"
#include "launcher/trace_page.h"
#include "launcher/trace_reader.h"
#include "launcher/trace_summary.h"

namespace troupe::launcher {

namespace {

std::filesystem::path output_path(const TraceArguments& arguments, const char* name) {
  auto path = arguments.output.empty() ? arguments.directory / name : arguments.output;
  require_output_path(path);
  return path;
}

}  // namespace

void trace_summary_command(const TraceArguments& arguments) {
  fmt::print("{}", trace_summary(read_traces(arguments.directory)));
}

void trace_merge_command(const TraceArguments& arguments) {
  const TraceSet set = read_traces(arguments.directory);  // checks the files
  const auto path = output_path(arguments, "merged.json");
  replace_file(path, merged_trace(arguments.directory, static_cast<int>(set.ranks.size())));
  spdlog::info("{}: open it in ui.perfetto.dev", path.string());
}

void trace_html_command(const TraceArguments& arguments) {
  const TraceSet set = read_traces(arguments.directory);
  const auto path = output_path(arguments, "trace.html");
  replace_file(path, trace_page(set));
  spdlog::info("{}: open it in a browser", path.string());
}

}  // namespace troupe::launcher
