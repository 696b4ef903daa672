#include "launcher/config_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "actors/scheduler_limits.h"
#include "launcher/nearest_name.h"

namespace troupe::launcher {
namespace {

constexpr std::string_view kModel = "model_config";
constexpr std::string_view kCustom = "model_config.custom_params";
constexpr std::string_view kData = "data_config";
constexpr std::string_view kParallel = "parallel_config";
constexpr std::string_view kScheduler = "scheduler_config";
constexpr std::string_view kRuntime = "runtime_config";

constexpr int64_t kMaxTokens = 1 << 24;  // of anything; keeps products of sizes inside int64
constexpr int64_t kMaxWorld = 1024;

// The field behind a key: in<&Config::model, &Config::Model::dtype>.
using Accessor = Field (*)(Config&);
template <auto Section, auto Member>
Field in(Config& config) {
  return &(config.*Section.*Member);
}
template <auto Member>
constexpr Accessor in_model = in<&Config::model, Member>;
template <auto Member>
constexpr Accessor in_data = in<&Config::data, Member>;
template <auto Member>
constexpr Accessor in_parallel = in<&Config::parallel, Member>;
template <auto Member>
constexpr Accessor in_scheduler = in<&Config::scheduler, Member>;
template <auto Member>
constexpr Accessor in_runtime = in<&Config::runtime, Member>;
constexpr Accessor kNowhere = nullptr;

Key flag(std::string_view section, std::string_view name, Accessor field) {
  return {.section = section, .name = name, .type = Key::Type::kFlag, .field = field};
}

Key text(std::string_view section, std::string_view name, Accessor field) {
  return {.section = section, .name = name, .type = Key::Type::kText, .field = field};
}

Key integer(std::string_view section, std::string_view name, int64_t min, int64_t max,
            Accessor field) {
  Key key{.section = section, .name = name, .type = Key::Type::kInteger, .field = field};
  key.min = min;
  key.max = max;
  return key;
}

// The word "auto" too, kept as `value`.
Key or_auto(Key key, int value) {
  key.choices = {{"auto", value}};
  return key;
}

Key number(std::string_view section, std::string_view name, double min, double max,
           Accessor field) {
  Key key{.section = section, .name = name, .type = Key::Type::kNumber, .field = field};
  key.number_min = min;
  key.number_max = max;
  return key;
}

Key choice(std::string_view section, std::string_view name, std::vector<Choice> choices,
           Accessor field) {
  Key key{.section = section, .name = name, .type = Key::Type::kChoice, .field = field};
  key.choices = std::move(choices);
  return key;
}

template <class Enum>
Choice is(std::string_view name, Enum value) {
  return {name, static_cast<int>(value)};
}

Key parallel_size(std::string_view name, Accessor field) {
  Key key = integer(kParallel, name, 1, kMaxWorld, field);
  key.divides_world = true;
  return key;
}

Key derived(std::string_view name, int64_t (*value)(const Config&)) {
  Key key = integer(kParallel, name, 1, kMaxWorld, kNowhere);
  key.derived = value;
  return key;
}

// What `run` can do so far: entries go as the program learns more.
Key runs_only(std::vector<std::string_view> values, Key key) {
  key.runnable = std::move(values);
  return key;
}

// Ignored on a CPU; `why` completes the sentence "... has no effect on a CPU: ".
Key no_effect(std::string_view why, Key key) {
  key.no_effect = why;
  return key;
}

// What an NPU's word means here: `note` says it of `value`.
Key noted(std::string_view value, std::string_view note, Key key) {
  key.noted_value = value;
  key.note = note;
  return key;
}

std::vector<Key> model_keys() {
  using M = Config::Model;
  return {
      text(kModel, "model_name", in_model<&M::model_name>),
      text(kModel, "model_path", in_model<&M::model_path>),
      choice(kModel, "dtype",
             {is("bfloat16", ComputeType::kBfloat16), is("float32", ComputeType::kFloat32)},
             in_model<&M::dtype>),
      flag(kModel, "with_ckpt", in_model<&M::with_ckpt>),
      or_auto(integer(kModel, "next_n", 0, actors::kMaxDrafts, in_model<&M::next_n>),
              Config::kAuto),
      noted(
          "graph",
          "the operations of a decode step are recorded once per batch shape and replayed without "
          "messages between actors; prompts are read eagerly",
          choice(kModel, "exe_mode",
                 {is("eager", ExeMode::kEager), is("graph", ExeMode::kGraph),
                  is("ge_graph", ExeMode::kGraph), is("acl_graph", ExeMode::kGraph),
                  is("npugraph_ex", ExeMode::kGraph)},
                 in_model<&M::exe_mode>)),
      flag(kModel, "force_eplb", in_model<&M::force_eplb>),
      flag(kModel, "enable_profiler", in_model<&M::enable_profiler>),
      no_effect("output goes to stdout, logs to stderr, reports to --json",
                text(kModel, "output_path", kNowhere)),
      no_effect("kernels are compiled with the program, for every instruction set",
                flag(kModel, "enable_static_kernel", kNowhere)),
      no_effect("nothing is compiled while a model runs",
                flag(kModel, "enable_cache_compile", kNowhere)),
      no_effect("exe_mode: graph records one list of operations per batch shape",
                flag(kModel, "enable_dynamic_graph", kNowhere)),
      no_effect("weights are always packed in the order the kernels read them",
                flag(kModel, "enable_weight_nz", kNowhere)),
      no_effect("a rank always reads just its part of the weights",
                flag(kModel, "enable_online_split_weight", kNowhere)),
      no_effect("it has no counterpart", flag(kModel, "enable_hadamard", kNowhere)),
      no_effect("it has no counterpart", text(kModel, "hadamard_weight_path", kNowhere)),
      no_effect(
          "the instruction set is found at start",
          choice(kModel, "platform_version", {is("A2", 0), is("A3", 1), is("950", 2)}, kNowhere)),
  };
}

std::vector<Key> custom_keys() {
  using M = Config::Model;
  return {
      integer(kCustom, "moe_chunk_max_len", 1, kMaxTokens, in_model<&M::moe_chunk_max_len>),
      runs_only({"0"}, integer(kCustom, "micro_batch_mode", 0, 2, in_model<&M::micro_batch_mode>)),
      runs_only({"False"}, flag(kCustom, "enable_afd", in_model<&M::enable_afd>)),
      no_effect("it has no counterpart", flag(kCustom, "enable_mla_prolog", kNowhere)),
      noted("True", "a shared expert is computed while rows travel to the others",
            flag(kCustom, "enable_multi_streams", in_model<&M::enable_multi_streams>)),
      noted("True", "with exe_mode: graph a decode step is one parallel region of a rank's threads",
            flag(kCustom, "enable_superkernel", in_model<&M::enable_superkernel>)),
      flag(kCustom, "enable_o_proj_alltoall",
           in_parallel<&model::ParallelSizes::enable_o_proj_alltoall>),
      no_effect("the KV cache is in main memory already",
                flag(kCustom, "enable_offload", kNowhere)),
      no_effect("the kernels prefetch by themselves", flag(kCustom, "enable_prefetch", kNowhere)),
      no_effect("runtime_config.threads_per_rank is a rank's share of the cores",
                flag(kCustom, "enable_limit_core", kNowhere)),
      no_effect("scheduler_config.max_prefill_tokens bounds a prefill step",
                integer(kCustom, "prefill_mini_batch_size", 0, kMaxTokens, kNowhere)),
      no_effect("prompts are always read in pieces of scheduler_config.max_prefill_tokens",
                flag(kCustom, "enable_prefill_multi_cycle", kNowhere)),
  };
}

std::vector<Key> data_keys() {
  using D = Config::Data;
  return {
      text(kData, "dataset", in_data<&D::dataset>),
      text(kData, "dataset_path", in_data<&D::dataset_path>),
      integer(kData, "input_truncated_len", 0, kMaxTokens, in_data<&D::input_truncated_len>),
      number(kData, "temperature", 0, 100, in_data<&D::temperature>),
      number(kData, "top_p", 0, 1, in_data<&D::top_p>),
      integer(kData, "top_k", 0, INT32_MAX, in_data<&D::top_k>),
      integer(kData, "seed", 0, INT64_MAX, in_data<&D::seed>),
  };
}

std::vector<Key> parallel_keys() {
  using P = model::ParallelSizes;
  return {
      integer(kParallel, "world_size", 1, kMaxWorld, in_parallel<&P::world_size>),
      parallel_size("attn_tp_size", in_parallel<&P::attn_tp_size>),
      parallel_size("dense_tp_size", in_parallel<&P::dense_tp_size>),
      parallel_size("moe_tp_size", in_parallel<&P::moe_tp_size>),
      parallel_size("embed_tp_size", in_parallel<&P::embed_tp_size>),
      parallel_size("lmhead_tp_size", in_parallel<&P::lmhead_tp_size>),
      parallel_size("o_proj_tp_size", in_parallel<&P::o_proj_tp_size>),
      parallel_size("shared_tp_size", in_parallel<&P::shared_tp_size>),
      runs_only({"1"}, parallel_size("cp_size", in_parallel<&P::cp_size>)),
      derived("attn_dp_size", [](const Config& c) -> int64_t { return c.parallel.attn_dp_size(); }),
      derived("moe_ep_size", [](const Config& c) -> int64_t { return c.parallel.moe_ep_size(); }),
      derived("embed_dp_size",
              [](const Config& c) -> int64_t {
                return c.parallel.world_size / c.parallel.embed_tp_size;
              }),
      derived("cp_prefill_dp_size",
              [](const Config& c) -> int64_t {
                return c.parallel.world_size / (c.parallel.attn_tp_size * c.parallel.cp_size);
              }),
      integer(kParallel, "pp_size", 1, 1, kNowhere),
      no_effect("the scheduler places each prompt on one data-parallel rank",
                integer(kParallel, "offline_prefill_dp_group_size", 1, kMaxWorld, kNowhere)),
  };
}

std::vector<Key> scheduler_keys() {
  using S = Config::Scheduler;
  return {
      integer(kScheduler, "batch_size", 1, 65536, in_scheduler<&S::batch_size>),
      integer(kScheduler, "max_new_tokens", 1, kMaxTokens, in_scheduler<&S::max_new_tokens>),
      integer(kScheduler, "max_prefill_tokens", 0, kMaxTokens,
              in_scheduler<&S::max_prefill_tokens>),
      integer(kScheduler, "block_size", 1, 65536, in_scheduler<&S::block_size>),
      number(kScheduler, "mem_fraction_static", 0.01, 1, in_scheduler<&S::mem_fraction_static>),
      integer(kScheduler, "num_reserved_decode_tokens", 0, kMaxTokens,
              in_scheduler<&S::num_reserved_decode_tokens>),
      no_effect("scheduler_config.max_prefill_tokens bounds a prefill step",
                integer(kScheduler, "cp_mini_batch", -1, kMaxTokens, kNowhere)),
  };
}

std::vector<Key> runtime_keys() {
  using R = Config::Runtime;
  return {
      integer(kRuntime, "threads_per_rank", 1, 1024, in_runtime<&R::threads_per_rank>),
      runs_only({"auto", "bf16", "int8", "int4", "mxfp4"},
                choice(kRuntime, "weight_format",
                       {is("auto", WeightFormat::kAuto), is("bf16", WeightFormat::kBf16),
                        is("fp8", WeightFormat::kFp8), is("int8", WeightFormat::kInt8),
                        is("int4", WeightFormat::kInt4), is("mxfp4", WeightFormat::kMxfp4)},
                       in_runtime<&R::weight_format>)),
      flag(kRuntime, "deterministic", in_runtime<&R::deterministic>),
      number(kRuntime, "comm_timeout_s", 0.1, 86400, in_runtime<&R::comm_timeout_s>),
      integer(kRuntime, "comm_buffer_mb", 1, 4096, in_runtime<&R::comm_buffer_mb>),
      flag(kRuntime, "comm_hugepages", in_runtime<&R::comm_hugepages>),
      choice(kRuntime, "comm_mode",
             {is("inline", CommMode::kInline), is("thread", CommMode::kThread)},
             in_runtime<&R::comm_mode>),
      choice(kRuntime, "moe_dispatch",
             {is("fused", MoeDispatch::kFused), is("double_routing", MoeDispatch::kDoubleRouting)},
             in_runtime<&R::moe_dispatch>),
      choice(kRuntime, "moe_payload",
             {is("auto", MoePayload::kAuto), is("int8", MoePayload::kInt8)},
             in_runtime<&R::moe_payload>),
      number(kRuntime, "device_memory_gb", 0, 65536, in_runtime<&R::device_memory_gb>),
      text(kRuntime, "expert_placement", in_runtime<&R::expert_placement>),
      flag(kRuntime, "pin", in_runtime<&R::pin>),
      runs_only({"True"}, flag(kRuntime, "hugepages", in_runtime<&R::hugepages>)),
      text(kRuntime, "dump_dir", in_runtime<&R::dump_dir>),
  };
}

// A field's value as the file has it.
struct ValueText {
  const Key& key;

  std::string operator()(std::monostate) const { return ""; }
  std::string operator()(const bool* value) const { return *value ? "True" : "False"; }
  std::string operator()(const std::string* value) const { return *value; }
  std::string operator()(const std::filesystem::path* value) const { return value->string(); }
  template <class T>
  std::string operator()(const T* value) const {
    const auto found = std::find_if(key.choices.begin(), key.choices.end(), [=](const Choice& c) {
      return static_cast<T>(c.value) == *value;
    });
    if (found != key.choices.end()) return std::string(found->name);
    if constexpr (std::is_enum_v<T>)
      return "";
    else
      return fmt::format("{}", *value);
  }
};

}  // namespace

std::string Key::path() const { return fmt::format("{}.{}", section, name); }

std::string Key::expected() const {
  switch (type) {
    case Type::kFlag:
      return "True or False";
    case Type::kInteger:
      return min == max ? fmt::format("the integer {}", min)
                        : fmt::format("an integer from {} to {}{}{}", min, max,
                                      choices.empty() ? "" : ", or ",
                                      choices.empty() ? "" : choices.front().name);
    case Type::kNumber:
      return fmt::format("a number from {} to {}", number_min, number_max);
    case Type::kText:
      return "a string";
    case Type::kChoice:
      break;
  }
  std::vector<std::string_view> names;
  for (const Choice& candidate : choices) names.push_back(candidate.name);
  return fmt::format("one of {}", fmt::join(names, ", "));
}

const std::vector<Key>& known_keys() {
  static const std::vector<Key> keys = [] {
    std::vector<Key> all;
    for (auto section : {model_keys(), custom_keys(), data_keys(), parallel_keys(),
                         scheduler_keys(), runtime_keys()}) {
      std::move(section.begin(), section.end(), std::back_inserter(all));
    }
    return all;
  }();
  return keys;
}

const std::vector<std::string_view>& known_sections() {
  static const std::vector<std::string_view> sections{kModel,    kCustom,    kData,
                                                      kParallel, kScheduler, kRuntime};
  return sections;
}

const Key* find_key(std::string_view section, std::string_view name) {
  for (const Key& key : known_keys()) {
    if (key.section == section && key.name == name) return &key;
  }
  return nullptr;
}

std::string suggestion(std::string_view section, std::string_view name) {
  constexpr size_t kLongestName = 64;  // longer ones are no slips of the pen
  if (name.size() > kLongestName) return "; docs/configuration.md lists all keys";
  std::string best;
  size_t best_distance = std::max<size_t>(3, name.size() / 3 + 1);
  const auto consider = [&](std::string_view in_section, std::string_view candidate,
                            const std::string& shown) {
    // A name of another section is one slip further away.
    const size_t distance = edit_distance(name, candidate) + (in_section == section ? 0 : 1);
    if (distance >= best_distance) return;
    best_distance = distance;
    best = shown;
  };
  for (const Key& key : known_keys()) {
    consider(key.section, key.name, key.section == section ? std::string(key.name) : key.path());
  }
  for (std::string_view known : known_sections()) {
    const size_t dot = known.rfind('.');
    const bool nested = dot != std::string_view::npos;
    consider(nested ? known.substr(0, dot) : "", nested ? known.substr(dot + 1) : known,
             std::string(known));
  }
  return best.empty() ? "; docs/configuration.md lists all keys"
                      : fmt::format("; did you mean {}?", best);
}

std::string value_text(const Key& key, const Config& config) {
  if (key.field == nullptr) return "";
  // Fields point into a Config that may be written; this one is a copy and only read.
  Config copy = config;
  return std::visit(ValueText{key}, key.field(copy));
}

std::vector<std::string> not_runnable(const Config& config) {
  std::vector<std::string> lines;
  for (const Key& key : known_keys()) {
    if (key.runnable.empty()) continue;
    const std::string value = value_text(key, config);
    if (std::find(key.runnable.begin(), key.runnable.end(), value) != key.runnable.end()) continue;
    lines.push_back(fmt::format("{0}: {1} is valid, but this version runs only {2} (--set {0}={3})",
                                key.path(), value, fmt::join(key.runnable, " or "),
                                key.runnable.front()));
  }
  return lines;
}

}  // namespace troupe::launcher
