// `troupe bench decode` and `troupe bench prefill`: tokens per second of a configuration, beside
// what the machine's memory and arithmetic allow.
//
// One launch serves all repetitions. A first one, not timed, warms up and shows which experts were
// chosen; in decode the others repeat its tokens exactly, so the work of a step is known and not
// estimated.
//   decode   from the step after every sequence has its first token to the last token
//   prefill  from the request to its first token
// With --trace-cost a trace is recorded in every other repetition.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/bench_command.h"
#include "launcher/command_errors.h"
#include "launcher/commands.h"
#include "launcher/forward_work.h"
#include "launcher/launch_options.h"
#include "launcher/machine_limits.h"
#include "launcher/operation_profile.h"
#include "launcher/report.h"
#include "launcher/session.h"
#include "layers/isa.h"

namespace troupe::launcher {
namespace {

using Clock = std::chrono::steady_clock;

struct InferenceArguments {
  ConfigArguments config;
  int64_t tokens = 0;       // --tokens: decode: made by each sequence; prefill: of the prompt
  int64_t context = 0;      // --context: tokens of a sequence before its decoding starts
  int batch = 1;            // --batch
  int repeat = 5;           // --repeat
  bool profile = false;     // --profile
  bool trace_cost = false;  // --trace-cost
  std::filesystem::path json;
};

enum class Phase { kDecode, kPrefill };

const char* name(Phase phase) { return phase == Phase::kDecode ? "decode" : "prefill"; }

// Removed with what is in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::error_code error;
    std::string name =
        (std::filesystem::temp_directory_path(error) / "troupe-bench-XXXXXX").string();
    if (error || ::mkdtemp(name.data()) == nullptr)
      throw_user_error("a trace needs a directory: {}; set TMPDIR to one that can be written",
                       error ? error.message() : errno_text("mkdtemp"));
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// The launch, its requests, and when their tokens came.
class InferenceBench {
 public:
  InferenceBench(Phase phase, const InferenceArguments& arguments, Config config)
      : phase_(phase),
        arguments_(arguments),
        config_(std::move(config)),
        model_(model::read_model_config(config_.model.model_path)) {
    config_.scheduler.batch_size = arguments_.batch;
    if (arguments_.profile && config_.trace_dir.empty())
      config_.trace_dir = own_trace_.emplace().path();
    config_.trace_on_demand = arguments_.trace_cost;
    check_length();
  }

  nlohmann::json run() {
    const bool has_limit = ForwardWork::is_known(config_, model_);
    MachineLimits limits = measure_machine_limits(config_);
    const Load load{.longest_prompt = prompt_tokens(),
                    .longest_sequence = prompt_tokens() + new_tokens()};
    const auto router = static_cast<uint8_t>(msg::Observe::Router);
    Session session(
        config_, model_, load, router,
        {.on_tokens = [this](int, std::span<const int32_t> tokens,
                             actors::FinishReason) { count_tokens(tokens.size()); },
         .on_observed = [this](int, const actors::Observation& observation, int row, int position,
                               int count) { see(observation, row, position, count); }});
    repetition(session, router);
    const int64_t warm_steps = steps_of(session);
    std::vector<double> rates;
    for (int i = 0; i < arguments_.repeat; ++i) {
      const bool traced_first = arguments_.trace_cost && i % 2 == 1;
      if (traced_first) traced_rates_.push_back(traced_repetition(session));
      rates.push_back(repetition(session, 0));
      if (arguments_.trace_cost && !traced_first)
        traced_rates_.push_back(traced_repetition(session));
    }
    if (arguments_.trace_cost) trace_cost_ = cost_of(rates, traced_rates_);
    const int64_t steps = steps_of(session) - warm_steps;
    session.shut_down();
    const double bandwidth_before = limits.read_bytes_per_s;
    limits.read_bytes_per_s = (bandwidth_before + measure_read_bandwidth(config_)) / 2;
    nlohmann::json json =
        report(std::move(rates), has_limit ? limit(limits) : nullptr, session.load_s());
    if (arguments_.profile) profile_ = profile(warm_steps + 1, steps, has_limit);
    if (profile_) json["profile"] = to_json(*profile_);
    if (arguments_.trace_cost) json["trace_cost"] = trace_cost_;
    return json;
  }

  const std::optional<OperationProfile>& found_profile() const { return profile_; }

 private:
  int64_t prompt_tokens() const {
    return phase_ == Phase::kPrefill ? arguments_.tokens : arguments_.context + 1;
  }
  int64_t new_tokens() const { return phase_ == Phase::kPrefill ? 1 : arguments_.tokens + 1; }

  void check_length() const {
    const int64_t length = prompt_tokens() + new_tokens();
    if (length <= model_.max_position_embeddings) return;
    throw_user_error(
        "bench {}: {} positions are more than the model's max_position_embeddings {}; give fewer "
        "--tokens{}",
        name(phase_), length, model_.max_position_embeddings,
        phase_ == Phase::kDecode ? " or a shorter --context" : "");
  }

  // Arbitrary tokens, other ones for every sequence, so that they do not choose the same experts;
  // and for every prefill, which shall not find its prompt in the prefix cache.
  actors::Request request(int sequence, uint8_t observe) {
    if (phase_ == Phase::kPrefill) sequence = ++prefills_;
    actors::Request request;
    for (int64_t i = 0; i < prompt_tokens(); ++i)
      request.prompt.push_back(
          static_cast<int32_t>((i * 7919 + (sequence + 1) * 104729) % model_.vocab_size));
    request.max_new_tokens = static_cast<int>(new_tokens());
    request.observe = observe;
    return request;
  }

  // Tokens per second.
  double repetition(Session& session, uint8_t observe) {
    tokens_ = 0;
    waiting_ = arguments_.batch;
    const auto start = Clock::now();
    for (int i = 0; i < arguments_.batch; ++i) ids_.push_back(session.submit(request(i, observe)));
    session.run_until([&] { return session.idle(); });
    for (const int id : std::exchange(ids_, {})) session.release(id);
    const auto seconds = [](Clock::duration time) {
      return std::chrono::duration<double>(time).count();
    };
    return phase_ == Phase::kPrefill
               ? static_cast<double>(arguments_.tokens) / seconds(all_started_ - start)
               : static_cast<double>(tokens_) / seconds(last_token_ - all_started_);
  }

  double traced_repetition(Session& session) {
    session.start_trace(own_trace_ ? own_trace_->path() : own_trace_.emplace().path());
    const double rate = repetition(session, 0);
    session.drop_trace();
    return rate;
  }

  // How much longer it takes: of the pairs, which are neighbours in time.
  static nlohmann::json cost_of(const std::vector<double>& rates,
                                const std::vector<double>& traced) {
    std::vector<double> costs;
    for (size_t i = 0; i < rates.size(); ++i) costs.push_back(rates[i] / traced[i] - 1);
    std::ranges::sort(costs);
    const auto at = [&](double share) {
      return costs[static_cast<size_t>(share * static_cast<double>(costs.size() - 1))];
    };
    return {{"p25", at(0.25)}, {"p50", at(0.5)}, {"p75", at(0.75)}};
  }

  // A sequence's first token comes alone; what comes after the last of those is counted.
  void count_tokens(size_t count) {
    last_token_ = Clock::now();
    if (waiting_ > 0 && --waiting_ == 0) {
      all_started_ = last_token_;
      return;
    }
    if (waiting_ == 0) tokens_ += static_cast<int64_t>(count);
  }

  // Which experts the rows of a forward chose. In decode all sequences stand at one position.
  void see(const actors::Observation& observation, int row, int position, int count) {
    for (int i = 0; i < count; ++i) {
      const bool in_prompt = position + i < prompt_tokens();
      if (in_prompt != (phase_ == Phase::kPrefill)) continue;
      auto& chosen = chosen_[in_prompt ? 0 : position + i];
      for (int layer = 0; layer < model_.num_hidden_layers; ++layer) {
        if (!model_.is_moe_layer(layer)) continue;
        const Matrix<int32_t> ids = observation.router_ids(layer);
        for (int64_t j = 0; j < ids.cols; ++j) chosen.emplace(layer, ids.row(row + i)[j]);
      }
    }
  }

  // The step in the middle of the decoding, or the prompt as one forward.
  ForwardShape step_shape() const {
    double chosen = 0;
    for (const auto& [position, experts] : chosen_) chosen += static_cast<double>(experts.size());
    const double forwards = std::max<double>(1, static_cast<double>(chosen_.size()));
    if (phase_ == Phase::kPrefill)
      return {.sequences = 1, .rows = arguments_.tokens, .experts_touched = chosen / forwards};
    return {.sequences = arguments_.batch,
            .rows = 1,
            .first_position = prompt_tokens() + arguments_.tokens / 2,
            .experts_touched = chosen / forwards};
  }

  static int64_t steps_of(const Session& session) {
    return session.statistics().prefill_steps + session.statistics().decode_steps;
  }

  // Of the timed steps, which are `steps` from `first` on. A prompt may take several.
  OperationProfile profile(int64_t first, int64_t steps, bool work_is_known) const {
    OperationWorks works;
    if (work_is_known) works = ForwardWork(config_, model_).by_operation(step_shape());
    if (phase_ == Phase::kPrefill) {
      const double share = static_cast<double>(arguments_.repeat) / static_cast<double>(steps);
      for (auto& [op, work] : works) work.scale(share);
    }
    return operation_profile(
        read_traces(config_.trace_dir),
        {.kind = phase_ == Phase::kPrefill ? comm::TraceOp::kPrefill : comm::TraceOp::kDecode,
         .first = static_cast<int32_t>(first)},
        works);
  }

  nlohmann::json limit(const MachineLimits& limits) const {
    const Work work = ForwardWork(config_, model_).of(step_shape());
    const double tokens =
        static_cast<double>(phase_ == Phase::kPrefill ? arguments_.tokens : arguments_.batch);
    nlohmann::json peaks;
    for (int i = 0; i < layers::kNumArithmetics; ++i)
      peaks[layers::arithmetic_name(static_cast<layers::Arithmetic>(i))] =
          limits.operations_per_s[i] * 1e-9;
    return {{"read_gb_per_s", limits.read_bytes_per_s * 1e-9},
            {"peak_gflop_per_s", std::move(peaks)},
            {"weight_mb_per_token", work.weight_bytes * 1e-6 / tokens},
            {"kv_mb_per_token", work.kv_bytes * 1e-6 / tokens},
            {"gflop_per_token", work.gflop() / tokens},
            {"tokens_per_s", tokens / shortest_time(work, limits)}};
  }

  nlohmann::json report(std::vector<double> rates, nlohmann::json limit, double load_s) const {
    std::ranges::sort(rates);
    const double p50 = rates[rates.size() / 2];
    if (!limit.is_null()) limit["fraction"] = p50 / limit["tokens_per_s"].get<double>();
    return {{"tokens_per_s", {{"p50", p50}, {"min", rates.front()}, {"max", rates.back()}}},
            {"limit", std::move(limit)},
            {"tokens", arguments_.tokens},
            {"context", arguments_.context},
            {"batch", arguments_.batch},
            {"repeat", arguments_.repeat},
            {"world_size", config_.parallel.world_size},
            {"threads_per_rank", config_.runtime.threads_per_rank},
            {"isa", layers::isa_name(layers::active_isa())},
            {"load_s", load_s}};
  }

  Phase phase_;
  InferenceArguments arguments_;
  Config config_;
  std::optional<TemporaryDirectory> own_trace_;
  std::optional<OperationProfile> profile_;
  std::vector<double> traced_rates_;
  nlohmann::json trace_cost_;
  model::ModelConfig model_;
  std::vector<int> ids_;
  int prefills_ = 0;
  int waiting_ = 0;     // sequences without a token
  int64_t tokens_ = 0;  // since all have one
  Clock::time_point all_started_, last_token_;
  // By position of the forward's row (prefill: one for the whole prompt): (layer, expert).
  std::map<int64_t, std::set<std::pair<int, int32_t>>> chosen_;
};

void print(Phase phase, const nlohmann::json& report) {
  const auto& rate = report["tokens_per_s"];
  fmt::print("{}: {:.2f} tokens/s (median of {}; {:.2f} to {:.2f})\n", name(phase),
             rate["p50"].get<double>(), report["repeat"].get<int>(), rate["min"].get<double>(),
             rate["max"].get<double>());
  if (report.contains("trace_cost"))
    fmt::print("a trace costs {:.1f} % (median of the pairs; middle half {:.1f} to {:.1f})\n",
               100 * report["trace_cost"]["p50"].get<double>(),
               100 * report["trace_cost"]["p25"].get<double>(),
               100 * report["trace_cost"]["p75"].get<double>());
  const auto& limit = report["limit"];
  if (limit.is_null()) return;
  const auto& peaks = limit["peak_gflop_per_s"];
  fmt::print(
      "limit: {:.2f} tokens/s, of which {:.0f} % are reached\n"
      "  {:.1f} MB of weights, {:.2f} MB of KV cache and {:.3f} GFLOP a token\n"
      "  reading {:.1f} GB/s; computing fp32 {:.0f}, bf16 {:.0f}, int8 {:.0f} GFLOP/s\n",
      limit["tokens_per_s"].get<double>(), 100 * limit["fraction"].get<double>(),
      limit["weight_mb_per_token"].get<double>(), limit["kv_mb_per_token"].get<double>(),
      limit["gflop_per_token"].get<double>(), limit["read_gb_per_s"].get<double>(),
      peaks["fp32"].get<double>(), peaks["bf16"].get<double>(), peaks["int8"].get<double>());
}

void run_bench_inference(Phase phase, const InferenceArguments& arguments) {
  Config config = read_config(arguments.config);
  for (const std::string& note : config.notes) spdlog::info("{}", note);
  require_runnable(config);
  if (!arguments.json.empty()) require_output_path(arguments.json);
  InferenceBench bench(phase, arguments, std::move(config));
  const nlohmann::json report = bench.run();
  print(phase, report);
  if (bench.found_profile()) fmt::print("\n{}", table(*bench.found_profile()));
  if (!arguments.json.empty()) write_json_file(arguments.json, report);
}

void add(CLI::App& bench, Phase phase, const char* about, int64_t tokens) {
  CLI::App* command = bench.add_subcommand(name(phase), about);
  const auto arguments = std::make_shared<InferenceArguments>();
  add_config_options(*command, arguments->config)->required();
  add_inject_option(*command, arguments->config);
  CLI::Option* trace = add_trace_option(*command, arguments->config);
  command->add_option("--tokens", arguments->tokens, "tokens of one sequence")
      ->default_val(tokens)
      ->check(integer_from(1, 1 << 24));
  if (phase == Phase::kDecode) {
    command->add_option("--context", arguments->context, "tokens before them")
        ->default_val(0)
        ->check(integer_from(0, 1 << 24));
    command->add_option("--batch", arguments->batch, "sequences at once")
        ->default_val(1)
        ->check(integer_from(1, 65536));
  }
  command->add_option("--repeat", arguments->repeat, "timed repetitions")
      ->default_val(5)
      ->check(integer_from(1, 100000));
  CLI::Option* profile =
      command->add_flag("--profile", arguments->profile, "time and work by operation");
  command
      ->add_flag("--trace-cost", arguments->trace_cost,
                 "each repetition again with a trace: what that costs")
      ->excludes(trace)
      ->excludes(profile);
  command->add_option("--json", arguments->json, "write the report to this file");
  command->callback([phase, arguments] { run_bench_inference(phase, *arguments); });
}

}  // namespace

void add_bench_inference(CLI::App& bench) {
  add(bench, Phase::kPrefill, "tokens per second of reading a prompt", 512);
  add(bench, Phase::kDecode, "tokens per second of generating", 64);
}

}  // namespace troupe::launcher
