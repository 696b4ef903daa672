#include "launcher/launch.h"

#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "actors/rank.h"
#include "comm/arena.h"
#include "comm/endpoint.h"
#include "launcher/launch_sizes.h"
#include "launcher/progress.h"
#include "launcher/supervisor.h"
#include "model/weights.h"

namespace troupe::launcher {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPollInterval{100};
constexpr milliseconds kLastWordsGrace{1000};  // for messages of a rank that has exited to arrive
constexpr milliseconds kAbortGrace{500};       // for ranks to leave by themselves once aborted
constexpr milliseconds kShutdownGrace{5000};

// Signals that end the launch arrive as data on a descriptor while this lives.
class SignalReader {
 public:
  SignalReader() {
    sigemptyset(&signals_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals_, signal);
    ::sigprocmask(SIG_BLOCK, &signals_, &previous_);
    fd_ = Fd(::signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!fd_) throw std::runtime_error(errno_text("signalfd"));
  }
  ~SignalReader() { ::sigprocmask(SIG_SETMASK, &previous_, nullptr); }
  SignalReader(const SignalReader&) = delete;
  SignalReader& operator=(const SignalReader&) = delete;

  int fd() const { return fd_.get(); }
  bool arrived() const {
    signalfd_siginfo info;
    return ::read(fd_.get(), &info, sizeof(info)) == sizeof(info);
  }

 private:
  sigset_t signals_, previous_;
  Fd fd_;
};

class Launch {
 public:
  Launch(const Config& config, const model::ModelConfig& model,
         std::vector<actors::Request> requests, uint8_t observe, const LaunchCallbacks& callbacks)
      : limits_(scheduler_limits(config, model, load_of(requests, model), observe)),
        launch_(describe_launch(config, limits_, observe)),
        loader_(config.model.model_path, model, model::ParallelLayout(config.parallel, model),
                actors::weight_options(launch_)),
        observation_shape_(actors::ObservationShape::of(observe, launch_.max_rows, model)),
        callbacks_(callbacks),
        mailbox_(actors::kLauncherRank,
                 [this](int rank, std::span<const std::byte> bytes) { send_bytes(rank, bytes); }),
        scheduler_(mailbox_, limits_, callbacks.on_tokens,
                   [this](int index, int rank, int row, int position, int count) {
                     callbacks_.on_observed(index, observation(rank), row, position, count);
                   }) {
    launch_.shared_weight_bytes = loader_.shared_bytes();
    num_requests_ = static_cast<int>(requests.size());
    for (actors::Request& request : requests) scheduler_.submit(std::move(request));
    create_shared_memory_for(model);
  }

  LaunchResult run() {
    const auto started = steady_clock::now();
    endpoint_.emplace(limits_.world_size);
    ranks_.resize(limits_.world_size);
    supervisor_.spawn(
        limits_.world_size,
        {"--address", endpoint_->address(), "--launcher-pid", std::to_string(::getpid())},
        {arena_->fd(), weights_fd_.get(), kv_fd_.get(), observation_fd_.get()});
    watch([this] { return ready_ == limits_.world_size; });
    result_.load_s = std::chrono::duration<double>(steady_clock::now() - started).count();
    progress_.finish();
    spdlog::info("{} ranks ready in {:.2f} s", limits_.world_size, result_.load_s);

    scheduler_.start();
    watch([this] { return scheduler_.finished(); });
    shut_down();
    for (int i = 0; i < num_requests_; ++i) result_.completions.push_back(scheduler_.completion(i));
    result_.statistics = scheduler_.statistics();
    return std::move(result_);
  }

 private:
  struct RankView {
    uint64_t loaded = 0, to_load = 0;
    bool gone = false;  // said Goodbye
  };

  void create_shared_memory_for(const model::ModelConfig& model) {
    arena_.emplace(
        comm::Arena::create({limits_.world_size, static_cast<size_t>(launch_.comm_buffer_bytes)}));
    weights_fd_ = create_shared_memory("troupe-weights", loader_.shared_bytes());
    const size_t kv_section = actors::kv_section_bytes(actors::kv_cache_shape(launch_, model));
    kv_fd_ = create_shared_memory("troupe-kv", kv_section * limits_.world_size);
    const size_t observed = observation_shape_.bytes() * limits_.world_size;
    observation_fd_ = create_shared_memory("troupe-observation", observed);
    observation_memory_ = Mapping(observation_fd_.get(), observed, Mapping::Access::kReadOnly);
  }

  actors::Observation observation(int rank) const {
    return {observation_shape_, observation_memory_.data() + rank * observation_shape_.bytes()};
  }

  // Handles whatever happens until done() is true.
  void watch(const std::function<bool()>& done) {
    last_progress_ = steady_clock::now();
    while (!done()) {
      wait_for_events();
      read_messages();
      if (signals_.arrived()) throw_after_stop<Interrupted>("interrupted");
      for (const RankExit& exit : supervisor_.reap()) on_exit(exit);
      check_for_stall();
    }
  }

  void on_exit(const RankExit& exit) {
    // Of a killed one no more is read: a message could ask for a step that it can no longer do.
    if (exit.signal == 0) hear_last_words(exit.rank);
    if (!ranks_[exit.rank].gone) fail_with(exit_cause(exit));
  }

  void wait_for_events() {
    std::vector<pollfd>& fds = poll_buffer_;
    fds.clear();
    fds.push_back({signals_.fd(), POLLIN, 0});
    fds.push_back({endpoint_->poll_fd(), POLLIN, 0});
    for (const int fd : supervisor_.poll_fds())
      if (fd >= 0) fds.push_back({fd, POLLIN, 0});
    ::poll(fds.data(), fds.size(), static_cast<int>(kPollInterval.count()));
  }

  // A rank that exits by itself has said Goodbye or Failed; that may still be under way.
  void hear_last_words(int rank) {
    const auto deadline = steady_clock::now() + kLastWordsGrace;
    for (read_messages(); !ranks_[rank].gone && steady_clock::now() < deadline; read_messages()) {
      pollfd fd{endpoint_->poll_fd(), POLLIN, 0};
      ::poll(&fd, 1, 10);
    }
  }

  void read_messages() {
    while (const auto message = endpoint_->receive()) {
      const std::string sender = fmt::format("rank {}", message->from_rank);
      const msg::Envelope& envelope = actors::verified(message->body, sender);
      if (envelope.from()->rank() != message->from_rank)
        throw_rank_error("{} says it is rank {}", sender, envelope.from()->rank());
      on_message(message->from_rank, envelope);
    }
  }

  void on_message(int rank, const msg::Envelope& envelope) {
    last_progress_ = steady_clock::now();
    if (envelope.body_as_Hello() != nullptr) return answer_hello(rank);
    if (const auto* progress = envelope.body_as_LoadProgress())
      return show_progress(rank, *progress);
    if (envelope.body_as_Ready() != nullptr) {
      ++ready_;
      return;
    }
    if (const auto* failed = envelope.body_as_Failed()) {
      // When another failed first this is a consequence: that one's own message or end comes too.
      const int first = arena_->first_failed_rank();
      if (first >= 0 && first != rank) return;
      if (failed->user_error()) throw_after_stop<UserError>(failed->what()->str());
      fail_with(failed->what()->str());
    }
    if (const auto* goodbye = envelope.body_as_Goodbye()) {
      ranks_[rank].gone = true;
      result_.ranks.push_back({rank, static_cast<double>(goodbye->rss_kb()) / 1024.0,
                               static_cast<double>(goodbye->pss_kb()) / 1024.0,
                               goodbye->bytes_sent(),
                               static_cast<double>(goodbye->wait_us()) / 1000.0});
      return;
    }
    if (envelope.body_as_StepDone() != nullptr) return mailbox_.deliver(envelope);
    throw_rank_error("rank {} sent an unexpected {}", rank,
                     msg::EnumNameBody(envelope.body_type()));
  }

  void answer_hello(int rank) {
    flatbuffers::FlatBufferBuilder b;
    send(rank, b, msg::CreateLaunch(b, &launch_));
  }

  template <class Message>
  void send(int rank, flatbuffers::FlatBufferBuilder& b, flatbuffers::Offset<Message> body) {
    const msg::Address from(actors::kLauncherRank, msg::ActorKind::Scheduler);
    const msg::Address to(rank, msg::ActorKind::Rank);
    b.Finish(
        msg::CreateEnvelope(b, &from, &to, msg::BodyTraits<Message>::enum_value, body.Union()));
    send_bytes(rank, {reinterpret_cast<const std::byte*>(b.GetBufferPointer()), b.GetSize()});
  }

  // A rank that cannot be reached is dying: how it does says more than that it is not connected.
  void send_bytes(int rank, std::span<const std::byte> bytes) {
    try {
      endpoint_->send(rank, bytes);
    } catch (const RankError& error) {
      const auto deadline = steady_clock::now() + kLastWordsGrace;
      while (steady_clock::now() < deadline) {
        for (const RankExit& exit : supervisor_.reap()) on_exit(exit);
        wait_for_events();
      }
      fail_with(error.what());
    }
  }

  void show_progress(int rank, const msg::LoadProgress& progress) {
    ranks_[rank].loaded = progress.done();
    ranks_[rank].to_load = progress.total();
    uint64_t done = 0, total = 0;
    for (const RankView& view : ranks_) {
      done += view.loaded;
      total += view.to_load;
    }
    progress_.show(done, total);
  }

  // A launch is stalled when for the time limit no message came and no rank moved on.
  void check_for_stall() {
    uint64_t moved = 0;
    for (int rank = 0; rank < limits_.world_size; ++rank) {
      const comm::ActivitySnapshot now = arena_->snapshot(rank);
      moved += now.step * 31 + now.layer + now.sequence + static_cast<uint64_t>(now.stage);
    }
    const auto now = steady_clock::now();
    if (moved != last_moved_) {
      last_moved_ = moved;
      last_progress_ = now;
    }
    // Ranks report a missing peer themselves at the limit; this speaks when none of them can.
    if (now - last_progress_ < milliseconds(launch_.comm_timeout_ms) + kPollInterval * 20) return;
    fail_with(fmt::format(
        "no rank made progress for {:.1f} s: {}; on a loaded machine raise "
        "runtime_config.comm_timeout_s",
        std::chrono::duration<double>(now - last_progress_).count(), describe_stalled_ranks()));
  }

  // What they are doing; an idle rank has done its part when there is one that has not.
  std::string describe_stalled_ranks() const {
    std::string busy, idle;
    for (int rank = 0; rank < limits_.world_size; ++rank) {
      const comm::ActivitySnapshot now = arena_->snapshot(rank);
      std::string& ranks = now.stage == comm::Stage::kIdle ? idle : busy;
      ranks += fmt::format("{}rank {} in {}", ranks.empty() ? "" : "; ", rank, comm::describe(now));
    }
    return busy.empty() ? idle : busy;
  }

  std::string exit_cause(const RankExit& exit) {
    const std::string own_words = arena_->failure(exit.rank);
    if (exit.signal == 0 && !own_words.empty()) return own_words;
    std::string waiting;
    for (int rank = 0; rank < limits_.world_size; ++rank)
      if (rank != exit.rank && arena_->snapshot(rank).waiting_for == exit.rank)
        waiting += fmt::format("{}{}", waiting.empty() ? "; waited for by rank " : ", ", rank);
    return fmt::format("rank {} (pid {}) {} in {}{}", exit.rank, exit.pid, describe(exit),
                       comm::describe(arena_->snapshot(exit.rank)), waiting);
  }

  [[noreturn]] void fail_with(const std::string& cause) { throw_after_stop<RankError>(cause); }

  template <class Error>
  [[noreturn]] void throw_after_stop(const std::string& what) {
    progress_.finish();
    arena_->abort();
    supervisor_.stop_all(kAbortGrace);
    throw Error(what);
  }

  void shut_down() {
    for (int rank = 0; rank < limits_.world_size; ++rank) {
      flatbuffers::FlatBufferBuilder b;
      send(rank, b, msg::CreateShutdown(b));
    }
    watch([this] { return std::ranges::all_of(ranks_, &RankView::gone); });
    for (const RankExit& exit : supervisor_.stop_all(kShutdownGrace))
      if (exit.signal != 0 || exit.exit_status != 0)
        throw_rank_error("rank {} (pid {}) {} while stopping", exit.rank, exit.pid, describe(exit));
    std::ranges::sort(result_.ranks, {}, &RankFigures::rank);
  }

  SignalReader signals_;
  actors::SchedulerLimits limits_;
  msg::LaunchT launch_;
  model::WeightLoader loader_;
  actors::ObservationShape observation_shape_;
  LaunchCallbacks callbacks_;
  std::optional<comm::Arena> arena_;
  Fd weights_fd_, kv_fd_, observation_fd_;
  Mapping observation_memory_;
  std::optional<comm::LauncherEndpoint> endpoint_;
  actors::Mailbox mailbox_;
  actors::Scheduler scheduler_;
  Supervisor supervisor_;
  std::vector<RankView> ranks_;
  std::vector<pollfd> poll_buffer_;
  LoadProgressBar progress_;
  LaunchResult result_;
  int num_requests_ = 0;
  int ready_ = 0;
  steady_clock::time_point last_progress_;
  uint64_t last_moved_ = 0;
};

}  // namespace

LaunchResult run_launch(const Config& config, const model::ModelConfig& model,
                        std::vector<actors::Request> requests, uint8_t observe,
                        const LaunchCallbacks& callbacks) {
  Launch launch(config, model, std::move(requests), observe, callbacks);
  return launch.run();
}

}  // namespace troupe::launcher
