// launcher/main.cc: the command line of `troupe`. Exit statuses: base/error.h.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "actors/rank.h"
#include "base/error.h"
#include "base/log.h"
#include "launcher/bench_command.h"
#include "launcher/command_docs.h"
#include "launcher/command_errors.h"
#include "launcher/commands.h"
#include "launcher/launch.h"
#include "launcher/launch_options.h"
#include "launcher/supervisor.h"
#include "layers/isa.h"
#include "serve/bench_serve.h"
#include "serve/serve_command.h"

namespace troupe::launcher {

namespace {

void add_config(CLI::App* command, ConfigArguments& arguments) {
  add_config_options(*command, arguments)->required();
}

void add_launch(CLI::App* command, ConfigArguments& arguments) {
  add_config(command, arguments);
  add_inject_option(*command, arguments);
  add_trace_option(*command, arguments);
}

void add_run(CLI::App& app, RunArguments& arguments) {
  CLI::App* command = app.add_subcommand("run", "generate text");
  add_launch(command, arguments.config);
  command->add_option("--prompt", arguments.prompts, "text to continue; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--prompt-file", arguments.prompt_file, "JSON: {\"text\": ...} or a list");
  command
      ->add_option("--prompt-ids", arguments.prompt_ids, "token ids 1,2,3 as they are; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  CLI::Option* chat = command->add_flag(
      "--chat", arguments.chat, "prompts are what a user says, by the checkpoint's chat template");
  command->add_option("--chat-template", arguments.chat_template, "this Jinja file instead")
      ->needs(chat);
  command->add_flag("--ignore-eos", arguments.ignore_eos, "do not stop at the end-of-text token");
  command->add_option("--stop", arguments.stops, "text before which an answer ends; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--n", arguments.n, "answers to each prompt, with numbers of their own")
      ->check(integer_from(1, 1024));
  command->add_option("--json", arguments.json, "write the report to this file");
  command->callback([&] { run_command(arguments); });
}

void add_chat(CLI::App& app, ChatArguments& arguments) {
  CLI::App* command = app.add_subcommand("chat", "talk to the model; reads lines from a pipe too");
  add_launch(command, arguments.config);
  command->add_flag("--raw", arguments.raw, "continue plain text, without chat template");
  command->add_option("--chat-template", arguments.chat_template,
                      "this Jinja file instead of the checkpoint's");
  command->callback([&] { chat_command(arguments); });
}

void add_score(CLI::App& app, ScoreArguments& arguments) {
  CLI::App* command = app.add_subcommand("score", "log-probabilities and perplexity of a text");
  add_launch(command, arguments.config);
  command->add_option("--text-file", arguments.text_file, "text to score");
  command
      ->add_option("--prompt-ids", arguments.prompt_ids, "token ids 1,2,3 as they are; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--json", arguments.json, "write the report to this file");
  command->add_option("--dump", arguments.dump, "write tensors to this .safetensors file");
  command->add_option("--dump-items", arguments.dump_items, "of logits,router,mtp")
      ->delimiter(',')
      ->default_str("logits");
  command->callback([&] {
    if (arguments.dump_items.empty()) arguments.dump_items = {"logits"};
    score_command(arguments);
  });
}

void add_verify(CLI::App& app, VerifyArguments& arguments, int& status) {
  CLI::App* command = app.add_subcommand("verify", "compare this layout with one rank, bit by bit");
  add_launch(command, arguments.config);
  command->add_option("--text-file", arguments.text_file, "text to read; the default is built in");
  command
      ->add_option("--prompt-ids", arguments.prompt_ids, "token ids 1,2,3 as they are; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  command->callback([&] { status = verify_command(arguments) ? kExitOk : kExitInternal; });
}

void add_tokenize(CLI::App& app, TokenizeArguments& arguments) {
  CLI::App* command = app.add_subcommand("tokenize", "text to token ids and back, as JSON");
  command
      ->add_option("--tokenizer", arguments.tokenizer,
                   "directory with tokenizer.json or tiktoken.model")
      ->required();
  command->add_option("--text", arguments.text, "text to encode");
  command->add_option("--prompt-file", arguments.prompt_file, "JSON list of texts to encode");
  command->add_option("--ids", arguments.ids, "token ids 1,2,3 to decode");
  command->add_flag("--no-special", arguments.no_special, "add no BOS or EOS");
  command->callback([&] { tokenize_command(arguments); });
}

void add_check(CLI::App& app, CheckArguments& arguments) {
  CLI::App* command = app.add_subcommand("check", "validate a configuration; starts nothing");
  add_config(command, arguments.config);
  command->add_flag("--fit", arguments.fit, "fail if it does not fit this machine");
  command->callback([&] { check_command(arguments); });
}

void add_convert(CLI::App& app, ConvertArguments& arguments) {
  CLI::App* command = app.add_subcommand("convert", "rewrite a checkpoint with other weight types");
  command->add_option("--input", arguments.input, "checkpoint directory")->required();
  command->add_option("--output", arguments.output, "directory to make; a call cut short goes on")
      ->required();
  command
      ->add_option("--quant-mode", arguments.quant_mode,
                   "bfloat16 (from fp8, fp16 or MXFP4), w8a8c16 (int8 weights and activations), "
                   "w8a8c8 (and an int8 KV cache)")
      ->required();
  command->add_option("--calibration-file", arguments.calibration_file,
                      "w8a8c8: text on which the scales of the KV cache are measured");
  command->callback([&] { convert_command(arguments); });
}

void add_split(CLI::App& app, SplitArguments& arguments) {
  CLI::App* command = app.add_subcommand("split", "cut a checkpoint up for the ranks of a layout");
  command->add_option("--input", arguments.input, "checkpoint directory")->required();
  command->add_option("--output", arguments.output, "directory to make")->required();
  add_config(command, arguments.config);
  command->callback([&] { split_command(arguments); });
}

void add_eplb(CLI::App& app, EplbArguments& arguments) {
  CLI::App* command =
      app.add_subcommand("eplb", "place experts by their recorded load, the busiest several times");
  add_config(command, arguments.config);
  command
      ->add_option("--counts", arguments.counts, "report of `run --json` or `bench serve --json`")
      ->required();
  command
      ->add_option("--redundant", arguments.redundant,
                   "copies of experts beyond one of each, over all ranks")
      ->check(integer_from(0, 1 << 20))
      ->default_str("0");
  command->add_option("--nodes", arguments.nodes, "machines that share the ranks evenly")
      ->check(integer_from(1, 1024))
      ->default_str("1");
  command
      ->add_option("--output", arguments.output,
                   "file to write, for runtime_config.expert_placement")
      ->required();
  command->callback([&] { eplb_command(arguments); });
}

void add_explain(CLI::App& app, ConfigArguments& arguments) {
  CLI::App* command =
      app.add_subcommand("explain", "every value, where it came from, what follows");
  add_config(command, arguments);
  command->callback([&] { explain_command(arguments); });
}

void add_doctor(CLI::App& app, DoctorArguments& arguments, int& status) {
  CLI::App* command = app.add_subcommand("doctor", "what of this machine is in the way, and cures");
  add_config_options(*command, arguments.config);
  command->add_flag("--json", arguments.json, "print JSON");
  command->callback([&] { status = doctor_command(arguments) ? kExitOk : kExitInternal; });
}

void add_status(CLI::App& app, StatusArguments& arguments) {
  CLI::App* command = app.add_subcommand("status", "what running launches do, also one that hangs");
  command->add_option("pid", arguments.pid, "of one launch; default: all of this user")
      ->check(integer_from(1, INT32_MAX));
  command->add_flag("--json", arguments.json, "print JSON");
  command->callback([&] { status_command(arguments); });
}

void add_top(CLI::App& app, TopArguments& arguments) {
  CLI::App* command = app.add_subcommand("top", "the same again and again, with tokens per second");
  command->add_option("pid", arguments.pid, "of the launch, if there are several")
      ->check(integer_from(1, INT32_MAX));
  command->add_option("--interval", arguments.interval_s, "seconds")
      ->check(number_from(0.1, 3600))
      ->default_str("1");
  command->add_option("--count", arguments.count, "how often; default: until the launch ends")
      ->check(integer_from(1, 1000000));
  command->callback([&] { top_command(arguments); });
}

void add_trace(CLI::App& app, TraceArguments& arguments) {
  CLI::App* trace = app.add_subcommand("trace", "read what --trace has written");
  trace->require_subcommand(1);
  const auto add = [&](const char* name, const char* about, void (*run)(const TraceArguments&)) {
    CLI::App* command = trace->add_subcommand(name, about);
    command->add_option("directory", arguments.directory, "the DIR of --trace")->required();
    command->callback([&arguments, run] { run(arguments); });
    return command;
  };
  const char* output = "file to write";
  add("summary", "where the time of each rank went", trace_summary_command);
  add("merge", "all ranks as one Chrome trace", trace_merge_command)
      ->add_option("--output", arguments.output, output)
      ->default_str("DIR/merged.json");
  add("html", "a page to look at, without a network", trace_html_command)
      ->add_option("--output", arguments.output, output)
      ->default_str("DIR/trace.html");
}

void add_inspect(CLI::App& app, InspectArguments& arguments) {
  CLI::App* command = app.add_subcommand("inspect", "what a checkpoint is; reads no weights");
  command->add_option("directory", arguments.directory, "with config.json")->required();
  command->add_option("--config", arguments.layout, "YAML: what each rank of its layout needs");
  command->add_flag("--json", arguments.json, "print JSON");
  command->callback([&] { inspect_command(arguments); });
}

struct RankArguments {
  int rank = -1;
  int launcher_pid = 0;
  std::string address;
};

void add_rank(CLI::App& app, RankArguments& arguments, int& status) {
  CLI::App* command = app.add_subcommand("rank", "")->group("");  // hidden: started by the launcher
  command->add_option("--rank", arguments.rank)->required();
  command->add_option("--launcher-pid", arguments.launcher_pid)->required();
  command->add_option("--address", arguments.address)->required();
  command->callback([&] {
    enter_rank_process(arguments.rank, arguments.launcher_pid);
    constexpr int kFirst = Supervisor::kFirstFd;
    status = actors::run_rank(arguments.rank, arguments.address,
                              {.arena = kFirst,
                               .weights = kFirst + 1,
                               .kv_cache = kFirst + 2,
                               .observation = kFirst + 3});
  });
}

void add_command_docs(CLI::App& app, std::string& shell) {
  app.add_subcommand("man", "print the manual page: troupe man | man -l -")->callback([&app] {
    fmt::print("{}", man_page(app, TROUPE_VERSION));
  });
  CLI::App* command = app.add_subcommand("completion", "print a script that completes commands");
  command->add_option("shell", shell, "bash")->required()->check(CLI::IsMember({"bash"}));
  command->callback([&app] { fmt::print("{}", bash_completion(app)); });
}

void add_log(CLI::App& app, LogOptions& log) {
  app.add_option("--log-level", log.level, "of the log")
      ->check(CLI::IsMember(LogOptions::kLevels))
      ->default_str("info");
  app.add_option("--log-format", log.format, "lines for people, or JSON")
      ->check(CLI::IsMember(LogOptions::kFormats))
      ->default_str("text");
  app.add_option("--log-subsystems", log.subsystems, "these alone, as scheduler,rank")
      ->delimiter(',')
      ->check(CLI::IsMember(LogOptions::kSubsystems));
  app.add_option("--log-dir", log.directory,
                 "write launcher.log, rank_N.log of each rank and config.yaml there");
}

int fail(int status, const std::string& message) {
  log_to_file(LogLevel::kError, "launcher", message);
  std::fputs(("troupe: " + message + "\n").c_str(), stderr);
  return status;
}

int parse_and_run(CLI::App& app, int argc, char** argv) {
  int status = kExitOk;
  LogOptions log;
  std::string shell;
  RunArguments run;
  ChatArguments chat;
  ScoreArguments score;
  VerifyArguments verify;
  TokenizeArguments tokenize;
  CheckArguments check;
  DoctorArguments doctor;
  ConfigArguments explain;
  StatusArguments status_of;
  TopArguments top;
  ConvertArguments convert;
  SplitArguments split;
  EplbArguments eplb;
  TraceArguments trace;
  InspectArguments inspect;
  RankArguments rank;
  add_log(app, log);
  app.set_version_flag("--version", std::string("troupe ") + TROUPE_VERSION);
  // Not required of CLI11, which would say of a misspelt command only that there is none.
  app.require_subcommand(0, 1);
  app.final_callback([&] {
    if (app.get_subcommands().empty()) throw CLI::RequiredError("A command");
  });
  app.fallthrough();
  app.parse_complete_callback([&] {
    start_log(log, rank.rank);
    layers::active_isa();  // a wrong TROUPE_ISA is told before anything starts
  });
  add_run(app, run);
  add_chat(app, chat);
  add_score(app, score);
  add_verify(app, verify, status);
  add_tokenize(app, tokenize);
  add_check(app, check);
  add_explain(app, explain);
  add_doctor(app, doctor, status);
  add_status(app, status_of);
  add_top(app, top);
  serve::add_serve_command(app);
  serve::add_bench_serve(add_bench_command(app));
  add_convert(app, convert);
  add_split(app, split);
  add_eplb(app, eplb);
  add_trace(app, trace);
  add_inspect(app, inspect);
  add_command_docs(app, shell);
  add_rank(app, rank, status);
  refuse_empty_values(app);
  app.parse(argc, argv);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Troupe runs mixture-of-experts models on CPUs the way an accelerator cluster does.",
               "troupe");
  try {
    return parse_and_run(app, argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return fail(kExitUserError, command_error(app, error, argc, argv));
  } catch (const Interrupted& error) {
    return fail(kExitInterrupted, error.what());
  } catch (const UserError& error) {
    return fail(kExitUserError, error.what());
  } catch (const WorldFailed& error) {
    std::fputs(error.ranks().c_str(), stderr);
    return fail(kExitRankFailed, error.what());
  } catch (const RankError& error) {
    return fail(kExitRankFailed, error.what());
  } catch (const std::exception& error) {
    return fail(kExitInternal, error.what());
  }
}

}  // namespace troupe::launcher

int main(int argc, char** argv) { return troupe::launcher::main(argc, argv); }
