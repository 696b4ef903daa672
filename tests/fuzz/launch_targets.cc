#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "actors/actor.h"
#include "base/error.h"
#include "comm/fault.h"
#include "launcher/arrivals.h"
#include "launcher/chat_conversation.h"
#include "launcher/config.h"
#include "launcher/expert_load.h"
#include "launcher/prompts.h"
#include "launcher/symbols.h"
#include "launcher/trace_files.h"
#include "launcher/trace_page.h"
#include "launcher/trace_reader.h"
#include "launcher/trace_summary.h"
#include "model/expert_placement.h"
#include "tests/fuzz/target_functions.h"

namespace troupe::fuzz {

namespace fs = std::filesystem;

void yaml(Bytes bytes) {
  launcher::read_config(directory_with("yaml", "run.yaml", bytes) / "run.yaml", {});
}

void message(Bytes bytes) {
  // As a socket gives them: aligned for every type.
  std::vector<uint64_t> aligned(bytes.size() / sizeof(uint64_t) + 1);
  if (!bytes.empty()) std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const msg::Envelope& envelope = actors::verified(
      {reinterpret_cast<const std::byte*>(aligned.data()), bytes.size()}, "a fuzzer");
  msg::EnvelopeT unpacked;
  envelope.UnPackTo(&unpacked);
}

void prompts(Bytes bytes) {
  const fs::path file = directory_with("prompts", "prompts.json", bytes) / "prompts.json";
  launcher::read_prompt_file(file);
}

// Lines, each a prompt or what a benchmark asks.
void dataset(Bytes bytes) {
  const fs::path file = directory_with("dataset", "lines.jsonl", bytes) / "lines.jsonl";
  launcher::read_dataset(bytes.size() % 2 == 0 ? "default" : "LongBench", file);
}

void prompt_ids(Bytes bytes) { launcher::parse_ids(std::string(text_of(bytes))); }

void placement(Bytes bytes) {
  const fs::path file = directory_with("placement", "experts.json", bytes) / "experts.json";
  model::read_expert_placement(file);
}

void expert_counts(Bytes bytes) {
  const fs::path file = directory_with("counts", "report.json", bytes) / "report.json";
  launcher::read_expert_counts(file, 4);
}

void arrivals(Bytes bytes) {
  launcher::read_arrivals(directory_with("arrivals", "arrivals.csv", bytes) / "arrivals.csv");
}

void chat_log(Bytes bytes) {
  const fs::path file = directory_with("chat_log", "chat.json", bytes) / "chat.json";
  launcher::ChatConversation conversation;
  launcher::ChatSettings settings{launcher::Config()};
  launcher::load_chat(file, conversation, settings);
  conversation.template_messages();
  conversation.text();
}

// Of a program's file, that of a rank that crashed.
void symbols(Bytes bytes) {
  const fs::path file = directory_with("symbols", "module.so", bytes) / "module.so";
  for (const uint64_t address : {0, 1, 16, 4096})
    if (!launcher::function_at(file, address).empty()) return;
  throw UserError("no function");
}

void fault(Bytes bytes) { comm::parse_fault(std::string(text_of(bytes)), 4); }

// The only rank's file; the launcher's is one with nothing in it.
void trace(Bytes bytes) {
  const fs::path directory = directory_of("trace");
  write(launcher::trace_file(directory, 0), text_of(bytes));
  write(launcher::launcher_trace_file(directory), R"({"otherData":{"troupe_trace":1,"rank":-1,
      "world_size":1,"forgotten_events":0,"sent_bytes":[0],"expert_rows":[]},"traceEvents":[]})");
  const launcher::TraceSet set = launcher::read_traces(directory);
  launcher::trace_summary(set);
  launcher::trace_page(set);
  launcher::merged_trace(directory, 1);
}

}  // namespace troupe::fuzz
