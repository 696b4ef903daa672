#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/output_path.h"
#include "launcher/commands.h"
#include "launcher/trace_reader.h"
#include "launcher/trace_summary.h"

namespace troupe::launcher {

void trace_summary_command(const TraceArguments& arguments) {
  fmt::print("{}", trace_summary(read_traces(arguments.directory)));
}

void trace_merge_command(const TraceArguments&) {}
void trace_html_command(const TraceArguments&) {}

}  // namespace troupe::launcher
