// launcher/commands.h: what each subcommand of `troupe` does, once its arguments are read.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/config.h"

namespace troupe::launcher {

struct ConfigArguments {
  std::filesystem::path config;
  std::vector<std::string> overrides;  // --set
  std::vector<std::string> inject;     // --inject, of commands that start ranks
  std::filesystem::path trace;         // --trace: where a trace of the launch goes
};
// read_config() with what the other arguments say: faults to inject, which are checked; a trace.
Config read_config(const ConfigArguments& arguments);

struct RunArguments {
  ConfigArguments config;
  std::vector<std::string> prompts;     // --prompt
  std::vector<std::string> prompt_ids;  // --prompt-ids
  std::filesystem::path prompt_file;
  std::vector<std::string> stops;  // --stop: texts that end an answer
  int n = 1;                       // answers to each prompt
  bool ignore_eos = false;
  bool chat = false;                    // prompts are what a user says
  std::filesystem::path chat_template;  // in place of the checkpoint's
  std::filesystem::path json;
};
// Streams a single prompt's answer to stdout as it comes; several are printed in the order given.
void run_command(const RunArguments& arguments);

struct ChatArguments {
  ConfigArguments config;
  bool raw = false;                     // begins with plain continuation
  std::filesystem::path chat_template;  // in place of the checkpoint's
};
void chat_command(const ChatArguments& arguments);

struct ScoreArguments {
  ConfigArguments config;
  std::filesystem::path text_file;
  std::vector<std::string> prompt_ids;
  std::filesystem::path json, dump;
  std::vector<std::string> dump_items;  // logits, router, mtp
};
void score_command(const ScoreArguments& arguments);

struct VerifyArguments {
  ConfigArguments config;
  std::filesystem::path text_file;
  std::vector<std::string> prompt_ids;  // with text_file none: a text of its own
};
// Whether the layout and one rank agree; prints what they agree on, or where they part.
[[nodiscard]] bool verify_command(const VerifyArguments& arguments);

struct TokenizeArguments {
  std::filesystem::path tokenizer;
  std::optional<std::string> text;
  std::filesystem::path prompt_file;
  std::string ids;
  bool no_special = false;
};
void tokenize_command(const TokenizeArguments& arguments);

struct ConvertArguments {
  std::filesystem::path input, output;
  std::string quant_mode;
  std::filesystem::path calibration_file;
};
void convert_command(const ConvertArguments& arguments);

struct SplitArguments {
  ConfigArguments config;
  std::filesystem::path input, output;
};
void split_command(const SplitArguments& arguments);

struct EplbArguments {
  ConfigArguments config;
  std::filesystem::path counts;  // a report of `troupe run`
  int redundant = 0;             // experts' copies beyond one of each
  int nodes = 1;
  std::filesystem::path output;
};
// Writes the file of runtime_config.expert_placement; prints how even the ranks' load is.
void eplb_command(const EplbArguments& arguments);

struct StatusArguments {
  int pid = 0;  // 0: every launch of this user
  bool json = false;
};
void status_command(const StatusArguments& arguments);

struct TopArguments {
  int pid = 0;
  double interval_s = 1;
  int count = 0;  // pictures; 0: until the launch ends
};
void top_command(const TopArguments& arguments);

struct DoctorArguments {
  ConfigArguments config;  // may be empty: of any launch
  bool json = false;
};
// Prints what it found; false if launches cannot run.
[[nodiscard]] bool doctor_command(const DoctorArguments& arguments);

void explain_command(const ConfigArguments& arguments);

struct TraceArguments {
  std::filesystem::path directory;
  std::filesystem::path output;  // empty: a file in the directory
};
void trace_summary_command(const TraceArguments& arguments);
void trace_merge_command(const TraceArguments& arguments);
void trace_html_command(const TraceArguments& arguments);

struct InspectArguments {
  std::filesystem::path directory;
  std::filesystem::path layout;  // a YAML file, or none
  bool json = false;
};
void inspect_command(const InspectArguments& arguments);

struct CheckArguments {
  ConfigArguments config;
  bool fit = false;
};
void check_command(const CheckArguments& arguments);

}  // namespace troupe::launcher
