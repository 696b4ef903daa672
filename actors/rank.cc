#include "actors/rank.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <optional>

#include "actors/rank_actors.h"
#include "base/log.h"
#include "comm/crash.h"
#include "comm/endpoint.h"
#include "layers/isa.h"
#include "layers/team.h"

namespace troupe::actors {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kLaunchTimeout{
    60'000};  // for the first message; the ranks' own limits follow
constexpr milliseconds kProgressInterval{50};
constexpr size_t kPage = 4096;

// One rank's messages with its launcher.
class LauncherLink {
 public:
  LauncherLink(const std::string& address, int rank) : endpoint_(address, rank), rank_(rank) {}

  template <class Message>
  void send(flatbuffers::FlatBufferBuilder& b, flatbuffers::Offset<Message> body) {
    const msg::Address from(rank_, msg::ActorKind::Rank);
    const msg::Address to(kLauncherRank, msg::ActorKind::Scheduler);
    b.Finish(
        msg::CreateEnvelope(b, &from, &to, msg::BodyTraits<Message>::enum_value, body.Union()));
    send_bytes({reinterpret_cast<const std::byte*>(b.GetBufferPointer()), b.GetSize()});
  }
  void send_bytes(std::span<const std::byte> bytes) {
    if (communicator_ == nullptr || !communicator_->must(comm::Misdeed::kSpoilMessage))
      return endpoint_.send(bytes);
    std::vector<std::byte> spoiled(bytes.begin(), bytes.end());
    std::fill_n(spoiled.begin(), std::min<size_t>(4, spoiled.size()), std::byte{0xff});
    endpoint_.send(spoiled);
  }
  // Whose injected faults may spoil a message.
  void obey(const comm::Communicator& communicator) { communicator_ = &communicator; }

  const msg::Envelope& receive(milliseconds timeout) {
    const auto message = endpoint_.receive(timeout);
    if (!message)
      throw_rank_error("rank {}: no word from the launcher for {} ms", rank_, timeout.count());
    return verified(message->body, "the launcher");
  }

 private:
  comm::RankEndpoint endpoint_;
  int rank_;
  const comm::Communicator* communicator_ = nullptr;
};

// Kilobytes of a line like "Pss:   1234 kB" in /proc/self/smaps_rollup.
uint64_t memory_kb(const std::string& field) {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1));
  return 0;
}

// Those that the launcher was given: ranks inherit its affinity.
std::vector<int> allowed_cpus() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0)
    throw std::runtime_error(errno_text("sched_getaffinity"));
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

int64_t rows_of(const msg::StepPlan& plan) {
  int64_t rows = 0;
  for (const msg::SequencePlan* sequence : *plan.sequences()) rows += sequence->tokens()->size();
  return rows;
}

class RankProcess {
 public:
  RankProcess(int rank, const std::string& address, const RankDescriptors& descriptors)
      : rank_(rank), descriptors_(descriptors), link_(address, rank) {}

  void run() {
    start();
    load();
    serve();
    say_goodbye();
  }

  void tell_failure(const std::string& what, bool user_error) noexcept {
    try {
      log(LogLevel::kError, "rank", what, {.step = static_cast<int64_t>(step_)});
      if (arena_) arena_->publish_failure(rank_, what);
      flatbuffers::FlatBufferBuilder b;
      link_.send(b, msg::CreateFailedDirect(b, what.c_str(), user_error));
    } catch (const std::exception&) {
      // Nobody is left to tell: the exit status has to say it.
    }
  }

 private:
  void start() {
    flatbuffers::FlatBufferBuilder b;
    link_.send(b, msg::CreateHello(b, ::getpid()));
    const msg::Envelope& first = link_.receive(kLaunchTimeout);
    if (first.body_type() != msg::Body::Launch)
      throw_rank_error("rank {}: expected Launch, got {}", rank_,
                       msg::EnumNameBody(first.body_type()));
    first.body_as_Launch()->UnPackTo(&launch_);
    const milliseconds timeout(launch_.comm_timeout_ms);
    config_ = model::read_model_config(launch_.model_path);
    arena_ = comm::Arena::attach(
        Fd(descriptors_.arena), {launch_.world_size, static_cast<size_t>(launch_.comm_buffer_bytes),
                                 trace_shape(launch_, config_), launch_.comm_hugepages});
    comm::install_crash_handler(*arena_, rank_);
    communicator_.emplace(*arena_, rank_, timeout, comm_options(launch_));
    inject_faults();
    layout_.emplace(parallel_sizes(launch_), config_);
    options_ = weight_options(launch_);
    team_.emplace(team_options(launch_, rank_));
    use_team_.emplace(*team_);
    kv_shape_ = kv_cache_shape(launch_, config_);
    log(LogLevel::kInfo, "rank",
        fmt::format("pid {}, {} of {} ranks, {} threads, {}", ::getpid(), rank_, launch_.world_size,
                    launch_.threads_per_rank, layers::isa_name(layers::active_isa())));
  }

  void inject_faults() {
    std::vector<comm::Fault> mine;
    for (const std::string& text : launch_.faults)
      if (const auto fault = comm::parse_fault(text, launch_.world_size); fault.rank == rank_)
        mine.push_back(fault);
    link_.obey(*communicator_);
    communicator_->inject(std::move(mine));
  }

  void load() {
    communicator_->enter_step(comm::Stage::kLoading, 0);
    const auto started = steady_clock::now();
    load_weights();
    const size_t section = kv_section_bytes(kv_shape_);
    kv_memory_ =
        Mapping(descriptors_.kv_cache, section, Mapping::Access::kReadWrite, rank_ * section);
    const auto observed = ObservationShape::of(launch_.observe, launch_.max_rows, config_);
    observation_memory_ = Mapping(descriptors_.observation, observed.bytes(),
                                  Mapping::Access::kReadWrite, rank_ * observed.bytes());
    build_actors(observed);
    const auto elapsed =
        std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - started);
    log(LogLevel::kInfo, "rank",
        fmt::format("ready: weights in {:.2f} s, {} KV blocks of {} positions",
                    static_cast<double>(elapsed.count()) / 1e6, launch_.kv_blocks,
                    launch_.kv_block_size));
    flatbuffers::FlatBufferBuilder b;
    link_.send(b, msg::CreateReady(b, static_cast<uint64_t>(elapsed.count())));
  }

  // The checkpoint is mapped in here alone: the launcher drops it from the page cache once all
  // ranks are ready.
  void load_weights() {
    const model::WeightLoader loader(launch_.model_path, config_, *layout_, options_);
    if (loader.shared_bytes() != launch_.shared_weight_bytes)
      throw_rank_error("rank {}: the checkpoint changed while the ranks started; start again",
                       rank_);
    shared_weights_ =
        Mapping(descriptors_.weights, launch_.shared_weight_bytes, Mapping::Access::kReadWrite);
    auto last_told = steady_clock::now();
    weights_ = loader.load(rank_, shared_weights_.data(), [&](size_t done, size_t total) {
      const auto now = steady_clock::now();
      if (now - last_told < kProgressInterval && done != total) return;
      last_told = now;
      flatbuffers::FlatBufferBuilder b;
      link_.send(b, msg::CreateLoadProgress(b, done, total));
    });
    // Nobody reads shared weights before the first plan, which comes after every rank's Ready.
    shared_weights_.make_read_only();
  }

  void build_actors(const ObservationShape& observed) {
    const RankContext context{.config = config_,
                              .layout = *layout_,
                              .weights = weights_.weights,
                              .communicator = *communicator_,
                              .workspace = workspace_,
                              .kv_cache = layers::KvCache(kv_shape_, kv_memory_.data()),
                              .observation = Observation(observed, observation_memory_.data()),
                              .rounding = launch_.dtype == msg::DataType::Bfloat16
                                              ? layers::Rounding::kBf16
                                              : layers::Rounding::kNone,
                              .max_rows = launch_.max_rows,
                              .max_sequences = launch_.max_sequences,
                              .max_drafts = launch_.max_drafts,
                              .moe = moe_options(launch_),
                              .execution = execution_options(launch_)};
    actors_.emplace(context, [this](int, std::span<const std::byte> bytes) { send_answer(bytes); });
  }

  void send_answer(std::span<const std::byte> bytes) {
    const comm::TraceSpan span(communicator_->trace(), comm::TraceOp::kSendAnswer, 0,
                               std::ssize(bytes));
    link_.send_bytes(bytes);
  }

  void serve() {
    const bool logs_steps = logs(LogLevel::kDebug, "rank");
    comm::Trace* trace = communicator_->trace();
    for (;;) {
      communicator_->enter_step(comm::Stage::kIdle, step_);
      if (trace != nullptr) trace->set_track(comm::TraceTrack::kRank);
      comm::TraceSpan idle(trace, comm::TraceOp::kAwaitPlan);
      const msg::Envelope& envelope = link_.receive(std::chrono::hours(24 * 365));
      idle.end();
      if (envelope.body_type() == msg::Body::Shutdown) return;
      const auto* plan = envelope.body_as_StepPlan();
      if (plan == nullptr)
        throw_rank_error("rank {}: expected StepPlan, got {}", rank_,
                         msg::EnumNameBody(envelope.body_type()));
      step_ = plan->step();
      communicator_->enter_step(plan->decode() ? comm::Stage::kDecode : comm::Stage::kPrefill,
                                step_);
      if (logs_steps)
        log(LogLevel::kDebug, "rank",
            fmt::format("{} of {} rows", plan->decode() ? "decode" : "prefill", rows_of(*plan)),
            {.actor = "rank", .step = static_cast<int64_t>(step_)});
      const comm::TraceSpan span(
          trace, plan->decode() ? comm::TraceOp::kDecode : comm::TraceOp::kPrefill, rows_of(*plan));
      actors_->run_step(envelope);
    }
  }

  void say_goodbye() {
    communicator_->enter_step(comm::Stage::kStopping, step_);
    log(LogLevel::kInfo, "rank",
        fmt::format("done: {} bytes sent, waited {:.1f} ms", communicator_->bytes_sent(),
                    static_cast<double>(communicator_->wait_ns()) / 1e6),
        {.step = static_cast<int64_t>(step_)});
    msg::GoodbyeT goodbye;
    goodbye.rss_kb = memory_kb("Rss");
    goodbye.pss_kb = memory_kb("Pss");
    goodbye.bytes_sent = communicator_->bytes_sent();
    goodbye.wait_us = static_cast<uint64_t>(communicator_->wait_ns() / 1000);
    goodbye.messages = actors_->messages();
    goodbye.graphs_recorded = actors_->graphs().recorded;
    goodbye.graphs_replayed = actors_->graphs().replayed;
    for (const auto& [layer, rows] : actors_->expert_load()) {
      auto& load = *goodbye.expert_load.emplace_back(std::make_unique<msg::LayerLoadT>());
      load.layer = layer;
      load.rows = rows;
    }
    flatbuffers::FlatBufferBuilder b;
    link_.send(b, msg::CreateGoodbye(b, &goodbye));
  }

  int rank_;
  RankDescriptors descriptors_;
  LauncherLink link_;
  msg::LaunchT launch_;
  uint64_t step_ = 0;

  std::optional<comm::Arena> arena_;
  std::optional<comm::Communicator> communicator_;
  model::ModelConfig config_;
  std::optional<model::ParallelLayout> layout_;
  model::WeightOptions options_;
  layers::KvCacheShape kv_shape_;
  Mapping shared_weights_, kv_memory_, observation_memory_;
  model::WeightLoader::Loaded weights_;

  std::optional<layers::Team> team_;
  std::optional<layers::UseTeam> use_team_;
  Workspace workspace_;
  std::optional<RankActors> actors_;
};

}  // namespace

static model::ExpertPlacement expert_placement(const msg::LaunchT& launch) {
  model::ExpertPlacement placement{.layers = {}, .source = "expert_placement"};
  for (const auto& layer : launch.expert_placement) placement.layers[layer->layer] = layer->experts;
  return placement;
}

model::ParallelSizes parallel_sizes(const msg::LaunchT& launch) {
  return {.world_size = launch.world_size,
          .attn_tp_size = launch.attn_tp_size,
          .dense_tp_size = launch.dense_tp_size,
          .moe_tp_size = launch.moe_tp_size,
          .embed_tp_size = launch.embed_tp_size,
          .lmhead_tp_size = launch.lmhead_tp_size,
          .o_proj_tp_size = launch.o_proj_tp_size,
          .shared_tp_size = launch.shared_tp_size,
          .enable_o_proj_alltoall = launch.enable_o_proj_alltoall,
          .expert_placement = expert_placement(launch)};
}

static model::WeightOptions::Format weight_format(msg::WeightFormat format) {
  using Format = model::WeightOptions::Format;
  switch (format) {
    case msg::WeightFormat::Auto:
      return Format::kAuto;
    case msg::WeightFormat::Bf16:
      return Format::kBf16;
    case msg::WeightFormat::Int8:
      return Format::kInt8;
    case msg::WeightFormat::Int4:
      return Format::kInt4;
    case msg::WeightFormat::Mxfp4:
      return Format::kMxfp4;
  }
  TROUPE_CHECK(false, "weight format {}", static_cast<int>(format));
}

model::WeightOptions weight_options(const msg::LaunchT& launch) {
  return {.with_ckpt = launch.with_ckpt,
          .seed = launch.seed,
          .with_mtp = launch.with_mtp,
          .format = weight_format(launch.weight_format),
          .exact = launch.dtype == msg::DataType::Float32};
}

comm::CommOptions comm_options(const msg::LaunchT& launch) {
  const int threads = launch.threads_per_rank + (launch.comm_thread ? 1 : 0);
  return {.mode = launch.comm_thread ? comm::CommMode::kThread : comm::CommMode::kInline,
          .spin = comm::has_core_for_each_thread(launch.world_size, threads)};
}

layers::TeamOptions team_options(const msg::LaunchT& launch, int rank) {
  const int threads = launch.threads_per_rank;
  const std::vector<int> allowed = allowed_cpus();
  layers::TeamOptions options{.threads = threads, .spin = comm_options(launch).spin};
  if (!launch.pin) return options;
  for (int i = 0; i < threads; ++i)
    options.cpus.push_back(allowed[(rank * threads + i) % allowed.size()]);
  return options;
}

layers::KvCacheShape kv_cache_shape(const msg::LaunchT& launch, const model::ModelConfig& config) {
  const int64_t width =
      config.uses_gqa() ? 2 * config.qk_head_dim() *
                              model::ParallelLayout(parallel_sizes(launch), config).max_kv_heads()
                        : config.kv_width();
  return {.num_layers = config.num_hidden_layers + (launch.with_mtp ? 1 : 0),
          .num_blocks = launch.kv_blocks,
          .block_size = launch.kv_block_size,
          .width = width,
          .type = launch.dtype == msg::DataType::Float32 ? layers::KvType::kF32
                                                         : layers::KvType::kBf16};
}

comm::TraceShape trace_shape(const msg::LaunchT& launch, const model::ModelConfig& config) {
  const model::ParallelLayout layout(parallel_sizes(launch), config);
  return {.num_events = launch.trace_events,
          .num_layers = config.num_hidden_layers + 1,
          .num_experts = static_cast<int>(layout.num_physical_experts())};
}

ExecutionOptions execution_options(const msg::LaunchT& launch) {
  return {.graph = launch.graph,
          .superkernel = launch.superkernel,
          .multi_streams = launch.multi_streams};
}

MoeOptions moe_options(const msg::LaunchT& launch) {
  return {.chunk_max_len = launch.moe_chunk_max_len,
          .deterministic = launch.deterministic,
          .double_routing = launch.moe_double_routing,
          .int8_payload = launch.moe_int8_payload,
          .force_eplb = launch.force_eplb};
}

size_t kv_section_bytes(const layers::KvCacheShape& shape) {
  return (shape.bytes() + kPage - 1) / kPage * kPage;
}

int run_rank(int rank, const std::string& launcher_address, const RankDescriptors& descriptors) {
  RankProcess process(rank, launcher_address, descriptors);
  try {
    process.run();
    return kExitOk;
  } catch (const UserError& error) {
    process.tell_failure(error.what(), true);
    return kExitUserError;
  } catch (const RankError& error) {
    process.tell_failure(error.what(), false);
    return kExitRankFailed;
  } catch (const std::exception& error) {
    process.tell_failure(fmt::format("rank {}: {}", rank, error.what()), false);
    return kExitInternal;
  }
}

}  // namespace troupe::actors
