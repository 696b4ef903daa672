#include "rank_threads.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "actors/rank.h"
#include "actors/rank_actors.h"
#include "allocation_count.h"
#include "base/error.h"

namespace troupe::actors {

namespace {

using Bytes = std::vector<std::byte>;

constexpr std::chrono::milliseconds kPatient{120'000};
constexpr uint32_t kLoadGroup = 1000;
constexpr int kBlockSize = 8;  // so that sequences span blocks
constexpr int kStepsToWarmUp = 2;

std::string model_directory() { return TROUPE_SOURCE_DIR "/models/tiny-moe"; }

// Messages to one thread. An empty one says that nothing more will come.
class Inbox {
 public:
  void put(std::span<const std::byte> message) {
    const std::lock_guard lock(mutex_);
    messages_.emplace_back(message.begin(), message.end());
    arrived_.notify_one();
  }
  Bytes take() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return !messages_.empty(); });
    Bytes message = std::move(messages_.front());
    messages_.pop_front();
    return message;
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Bytes> messages_;
};

SchedulerLimits scheduler_limits(const LaunchOptions& options, const std::vector<Request>& requests,
                                 const model::ModelConfig& config) {
  SchedulerLimits limits{.world_size = options.sizes.world_size,
                         .attn_tp_size = options.sizes.attn_tp_size,
                         .batch_size = options.batch_size,
                         .max_prefill_tokens = options.max_prefill_tokens,
                         .num_drafts = options.num_drafts,
                         .run_mtp = options.num_drafts > 0,
                         .max_positions = config.max_position_embeddings,
                         .block_size = kBlockSize};
  int64_t longest = 0;
  for (const Request& r : requests)
    longest = std::max(longest, static_cast<int64_t>(r.prompt.size()) + r.max_new_tokens);
  limits.blocks_per_dp_rank = limits.most_blocks(longest, 0) * limits.sequences_per_dp_rank();
  return limits;
}

msg::LaunchT launch_message(const LaunchOptions& options, const SchedulerLimits& limits) {
  msg::LaunchT launch;
  launch.world_size = options.sizes.world_size;
  launch.model_path = model_directory();
  launch.with_ckpt = true;
  launch.dtype = options.dtype;
  launch.with_mtp = limits.run_mtp;
  launch.max_rows = limits.max_rows();
  launch.max_sequences = limits.sequences_per_dp_rank();
  launch.max_drafts = limits.num_drafts;
  launch.moe_chunk_max_len = options.moe_chunk_max_len;
  launch.deterministic = options.deterministic;
  launch.moe_double_routing = options.moe_double_routing;
  launch.moe_int8_payload = options.moe_int8_payload;
  launch.comm_thread = options.comm_thread;
  launch.graph = options.execution.graph;
  launch.superkernel = options.execution.superkernel;
  launch.multi_streams = options.execution.multi_streams;
  launch.kv_blocks = limits.blocks_per_dp_rank;
  launch.kv_block_size = limits.block_size;
  launch.threads_per_rank = options.threads_per_rank;
  return launch;
}

// What the ranks of one launch share.
struct World {
  const msg::LaunchT& launch;
  const model::ModelConfig& config;
  const model::ParallelLayout layout;
  comm::Arena arena;
  Mapping shared_weights;
  std::vector<Inbox> to_rank;
  Inbox to_scheduler;
  std::vector<std::exception_ptr> errors;
  std::vector<int64_t> decode_allocations;
  std::vector<LaunchOutcome::Steps> steps;
};

// Steps until told to end, counting what decode steps allocate and say.
void serve(World& world, int rank, RankActors& actors, const int64_t& allocated_by_test) {
  LaunchOutcome::Steps& steps = world.steps[rank];
  for (;;) {
    const Bytes bytes = world.to_rank[rank].take();
    if (bytes.empty()) return;
    const msg::Envelope& envelope = verified(bytes, "the scheduler");
    const int64_t before = allocations_of_this_thread() - allocated_by_test;
    const uint64_t messages_before = actors.messages();
    actors.run_step(envelope);
    const int64_t allocated = allocations_of_this_thread() - allocated_by_test - before;
    const uint64_t messages = actors.messages() - messages_before;
    const bool recorded = actors.graphs().recorded != steps.graphs.recorded;
    const bool replayed = actors.graphs().replayed != steps.graphs.replayed && !recorded;
    steps.graphs = actors.graphs();
    if (!envelope.body_as_StepPlan()->decode()) continue;
    if (steps.decode++ >= kStepsToWarmUp && !recorded) world.decode_allocations[rank] += allocated;
    steps.messages += messages;
    if (!replayed) continue;
    ++steps.replayed;
    steps.messages_of_replays += messages;
  }
}

void run_rank(World& world, int rank) {
  layers::Team team(team_options(world.launch, rank));
  const layers::UseTeam use_team(team);
  comm::Communicator communicator(world.arena, rank, kPatient, comm_options(world.launch));
  const model::WeightLoader loader(model_directory(), world.config, world.layout,
                                   weight_options(world.launch));
  const auto loaded = loader.load(rank, world.shared_weights.data(), [](size_t, size_t) {});
  comm::ProcessGroup all(communicator, kLoadGroup,
                         model::ParallelLayout::tp_group(rank, communicator.world_size()));
  all.barrier();

  Workspace workspace;
  const layers::KvCacheShape kv_shape = kv_cache_shape(world.launch, world.config);
  const Mapping kv_memory = Mapping::anonymous(kv_section_bytes(kv_shape));
  const bool bf16 = world.launch.dtype == msg::DataType::Bfloat16;
  int64_t allocated_by_test = 0;
  RankActors actors({.config = world.config,
                     .layout = world.layout,
                     .weights = loaded.weights,
                     .communicator = communicator,
                     .workspace = workspace,
                     .kv_cache = layers::KvCache(kv_shape, kv_memory.data()),
                     .observation = {},
                     .rounding = bf16 ? layers::Rounding::kBf16 : layers::Rounding::kNone,
                     .max_rows = world.launch.max_rows,
                     .max_sequences = world.launch.max_sequences,
                     .max_drafts = world.launch.max_drafts,
                     .moe = moe_options(world.launch),
                     .execution = execution_options(world.launch)},
                    [&](int, std::span<const std::byte> bytes) {
                      const int64_t before = allocations_of_this_thread();
                      world.to_scheduler.put(bytes);
                      allocated_by_test += allocations_of_this_thread() - before;
                    });
  serve(world, rank, actors, allocated_by_test);
}

void rank_thread(World& world, int rank) {
  try {
    run_rank(world, rank);
  } catch (const std::exception& error) {
    world.errors[rank] = std::current_exception();
    world.arena.publish_failure(rank, error.what());
    world.to_scheduler.put({});
  }
}

// The ranks, from their start to their end.
class RankThreads {
 public:
  explicit RankThreads(World& world) : world_(world) {
    for (int rank = 0; rank < world_.launch.world_size; ++rank)
      threads_.emplace_back([this, rank] { rank_thread(world_, rank); });
  }
  ~RankThreads() {
    for (Inbox& inbox : world_.to_rank) inbox.put({});
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  World& world_;
  std::vector<std::thread> threads_;
};

// Until all requests are finished, or a rank has failed.
void run_scheduler(World& world, Mailbox& mailbox, Scheduler& scheduler) {
  const RankThreads threads(world);
  scheduler.advance();
  while (!scheduler.finished()) {
    const Bytes bytes = world.to_scheduler.take();
    if (bytes.empty()) return;
    mailbox.deliver(verified(bytes, "a rank"));
  }
}

}  // namespace

LaunchOutcome launch(const LaunchOptions& options, std::vector<Request> requests) {
  const model::ModelConfig config = model::read_model_config(model_directory());
  const SchedulerLimits limits = scheduler_limits(options, requests, config);
  const msg::LaunchT message = launch_message(options, limits);
  const int world_size = options.sizes.world_size;
  const model::ParallelLayout layout(options.sizes, config);
  const size_t shared_bytes =
      model::WeightLoader(model_directory(), config, layout, weight_options(message))
          .shared_bytes();
  World world{.launch = message,
              .config = config,
              .layout = layout,
              .arena = comm::Arena::create({.world_size = world_size}),
              .shared_weights = Mapping::anonymous(shared_bytes),
              .to_rank = std::vector<Inbox>(world_size),
              .to_scheduler = {},
              .errors = std::vector<std::exception_ptr>(world_size),
              .decode_allocations = std::vector<int64_t>(world_size),
              .steps = std::vector<LaunchOutcome::Steps>(world_size)};

  Mailbox mailbox(kLauncherRank, [&](int rank, std::span<const std::byte> bytes) {
    world.to_rank[rank].put(bytes);
  });
  Scheduler scheduler(
      mailbox, limits, [](int, std::span<const int32_t>, FinishReason) {},
      [](int, int, int, int, int) {});
  const size_t num_requests = requests.size();
  for (Request& request : requests) scheduler.submit(std::move(request));

  run_scheduler(world, mailbox, scheduler);
  for (const std::exception_ptr& error : world.errors)
    if (error) std::rethrow_exception(error);

  LaunchOutcome outcome;
  for (size_t i = 0; i < num_requests; ++i)
    outcome.completions.push_back(scheduler.completion(static_cast<int>(i)));
  outcome.decode_allocations = world.decode_allocations;
  outcome.steps = world.steps;
  return outcome;
}

}  // namespace troupe::actors
