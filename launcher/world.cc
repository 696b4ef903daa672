#include "launcher/world.h"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "actors/actor.h"
#include "actors/rank.h"
#include "base/log.h"
#include "comm/endpoint.h"
#include "comm/flight_recorder.h"
#include "launcher/failure.h"
#include "launcher/failure_dump.h"
#include "launcher/launch_watch.h"
#include "launcher/machine_facts.h"
#include "launcher/progress.h"
#include "launcher/status_server.h"
#include "launcher/supervisor.h"
#include "launcher/trace_files.h"
#include "model/weights.h"

namespace troupe::launcher {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPollInterval{100};
constexpr milliseconds kLastWordsGrace{1000};  // for messages of a rank that has exited to arrive
constexpr milliseconds kAbortGrace{500};       // for ranks to end once aborted
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
  int take() const {  // the number of a signal that has arrived, else 0
    signalfd_siginfo info;
    return ::read(fd_.get(), &info, sizeof(info)) == sizeof(info) ? static_cast<int>(info.ssi_signo)
                                                                  : 0;
  }

 private:
  sigset_t signals_, previous_;
  Fd fd_;
};

// Everything that can end a wait, as one descriptor.
class EventSet {
 public:
  EventSet()
      : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!epoll_ || !wake_) throw std::runtime_error(errno_text("epoll_create1, eventfd"));
    add(wake_.get());
  }
  int fd() const { return epoll_.get(); }
  void add(int fd) {  // until it is closed
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    TROUPE_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0, "{}",
                 errno_text("epoll_ctl"));
  }
  void wait(milliseconds timeout) {
    epoll_event event;
    ::epoll_wait(epoll_.get(), &event, 1, static_cast<int>(timeout.count()));
    uint64_t wakes;
    [[maybe_unused]] const ssize_t read = ::read(wake_.get(), &wakes, sizeof(wakes));
  }
  void wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
  }

 private:
  Fd epoll_, wake_;
};

// The second number of /proc/PID/statm; 0 when the process is gone.
double resident_mb(int pid) {
  std::ifstream statm(fmt::format("/proc/{}/statm", pid));
  int64_t total_pages = 0, resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return static_cast<double>(resident_pages * ::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

}  // namespace

class World::Impl {
 public:
  Impl(msg::LaunchT launch, const model::ModelConfig& model, WorldPaths paths, Callbacks callbacks)
      : launch_(std::move(launch)),
        paths_(std::move(paths)),
        observation_shape_(actors::ObservationShape::of(launch_.observe, launch_.max_rows, model)),
        callbacks_(std::move(callbacks)),
        ranks_(launch_.world_size) {
    if (launch_.trace_events > 0) make_trace_directory(paths_.trace);
    create_shared_memory_for(model);
    if (launch_.trace_events == 0) return;
    trace_.emplace(*arena_, world_size());
    trace_->set_track(comm::TraceTrack::kScheduler);
  }

  void start() {
    const auto started = steady_clock::now();
    endpoint_.emplace(world_size());
    std::vector<std::string> arguments = log_options().arguments();
    for (const std::string& word : {std::string("--address"), endpoint_->address(),
                                    std::string("--launcher-pid"), std::to_string(::getpid())})
      arguments.push_back(word);
    supervisor_.spawn(world_size(), arguments,
                      {arena_->fd(), weights_fd_.get(), kv_fd_.get(), observation_fd_.get()});
    events_.add(signals_.fd());
    events_.add(endpoint_->poll_fd());
    for (const int fd : supervisor_.poll_fds()) events_.add(fd);
    const LaunchView seen = view();
    status_server_.emplace(*arena_, launch_description(seen.sizes, arena_->shape(), seen.pids));
    words_due_ = world_size();
    last_progress_ = steady_clock::now();
    while (words_due_ > 0) poll(kPollInterval);
    load_s_ = std::chrono::duration<double>(steady_clock::now() - started).count();
    progress_.finish();
    spdlog::info("{} ranks ready in {:.2f} s", world_size(), load_s_);
  }

  double load_s() const { return load_s_; }
  void publish(const comm::LaunchFigures& figures) const { arena_->publish_figures(figures); }
  int poll_fd() const { return events_.fd(); }
  void wake() { events_.wake(); }
  comm::Trace* trace() { return trace_ ? &*trace_ : nullptr; }

  actors::Observation observation(int rank) const {
    return {observation_shape_, observation_memory_.data() + rank * observation_shape_.bytes()};
  }

  std::vector<RankStatus> rank_status() const {
    std::vector<RankStatus> ranks;
    for (int rank = 0; rank < world_size(); ++rank) {
      const int pid = supervisor_.pid(rank);
      ranks.push_back({rank, pid, arena_->snapshot(rank), resident_mb(pid)});
    }
    return ranks;
  }
  comm::ActivitySnapshot activity(int rank) const { return arena_->snapshot(rank); }

  void send_plan(int rank, std::span<const std::byte> bytes) {
    if (words_due_++ == 0) last_progress_ = steady_clock::now();
    send_bytes(rank, bytes);
  }

  void poll(milliseconds timeout) {
    {
      const comm::TraceSpan span(trace(), comm::TraceOp::kAwaitAnswers);
      events_.wait(std::min(timeout, kPollInterval));
    }
    read_messages();
    if (const int signal = signals_.take()) on_signal(signal);
    for (const RankExit& exit : supervisor_.reap()) on_exit(exit);
    if (words_due_ > 0) check_for_stall();
  }

  std::vector<RankFigures> shut_down() {
    words_due_ = world_size();
    last_progress_ = steady_clock::now();
    for (int rank = 0; rank < world_size(); ++rank) {
      flatbuffers::FlatBufferBuilder b;
      send(rank, b, msg::CreateShutdown(b));
    }
    while (words_due_ > 0) poll(kPollInterval);
    for (const RankExit& exit : supervisor_.stop_all(kShutdownGrace))
      if (exit.signal != 0 || exit.exit_status != 0)
        throw_rank_error("rank {} (pid {}) {} while stopping", exit.rank, exit.pid, describe(exit));
    if (const size_t struck = arena_->faults_struck(); struck < launch_.faults.size())
      spdlog::warn("{} of {} faults of --inject never came to their place",
                   launch_.faults.size() - struck, launch_.faults.size());
    if (trace_) write_trace();
    std::ranges::sort(figures_, {}, &RankFigures::rank);
    return std::move(figures_);
  }

 private:
  struct RankView {
    uint64_t loaded = 0, to_load = 0;
    bool gone = false;  // said Goodbye
  };

  int world_size() const { return launch_.world_size; }

  void create_shared_memory_for(const model::ModelConfig& model) {
    const model::WeightLoader loader(launch_.model_path, model,
                                     model::ParallelLayout(actors::parallel_sizes(launch_), model),
                                     actors::weight_options(launch_));
    require_resources(model, loader);
    launch_.shared_weight_bytes = loader.shared_bytes();
    arena_.emplace(
        comm::Arena::create({world_size(), static_cast<size_t>(launch_.comm_buffer_bytes),
                             actors::trace_shape(launch_, model), launch_.comm_hugepages}));
    weights_fd_ = create_shared_memory("troupe-weights", loader.shared_bytes());
    const size_t kv_section = actors::kv_section_bytes(actors::kv_cache_shape(launch_, model));
    kv_fd_ = create_shared_memory("troupe-kv", kv_section * world_size());
    const size_t observed = observation_shape_.bytes() * world_size();
    observation_fd_ = create_shared_memory("troupe-observation", observed);
    observation_memory_ = Mapping(observation_fd_.get(), observed, Mapping::Access::kReadOnly);
  }

  void require_resources(const model::ModelConfig& model, const model::WeightLoader& loader) const {
    size_t weights = 0;
    for (int rank = 0; rank < world_size(); ++rank)
      weights = std::max(weights, loader.private_bytes(rank));
    const comm::ArenaShape arena{world_size(), static_cast<size_t>(launch_.comm_buffer_bytes)};
    const size_t kv_section = actors::kv_section_bytes(actors::kv_cache_shape(launch_, model));
    require_limits({.ranks = world_size(),
                    .threads_per_rank = launch_.threads_per_rank,
                    .mapped_bytes = address_space_of_rank(
                        arena.bytes(), weights + loader.shared_bytes(), kv_section)},
                   read_machine_facts());
  }

  void on_signal(int signal) {
    if (signal == SIGINT && callbacks_.on_interrupt && callbacks_.on_interrupt()) return;
    if (signal == SIGTERM && callbacks_.on_terminate && callbacks_.on_terminate()) return;
    throw_after_stop<Interrupted>("interrupted");
  }

  void on_exit(const RankExit& exit) {
    // Of a killed one no more is read: a message could ask for a step that it can no longer do.
    if (exit.signal == 0) hear_last_words(exit.rank);
    if (!ranks_[exit.rank].gone) fail_with(failure_of_exit(view(), exit));
  }

  // A rank that exits by itself has said Goodbye or Failed; that may still be under way.
  void hear_last_words(int rank) {
    const auto deadline = steady_clock::now() + kLastWordsGrace;
    for (read_messages(); !ranks_[rank].gone && steady_clock::now() < deadline; read_messages())
      events_.wait(milliseconds(10));
  }

  void read_messages() {
    while (const auto message = endpoint_->receive()) {
      const int rank = message->from_rank;
      on_message(rank, checked_envelope(rank, message->body));
    }
  }

  const msg::Envelope& checked_envelope(int rank, std::span<const std::byte> bytes) {
    const msg::Envelope* envelope = nullptr;
    try {
      envelope = &actors::verified(bytes, fmt::format("rank {}", rank));
    } catch (const RankError& error) {
      fail_with(failure_of_words(view(), rank, error.what()));
    }
    if (envelope->from()->rank() != rank)
      fail_with(failure_of_words(view(), rank,
                                 fmt::format("it says it is rank {}", envelope->from()->rank())));
    return *envelope;
  }

  void on_message(int rank, const msg::Envelope& envelope) {
    last_progress_ = steady_clock::now();
    if (envelope.body_as_Hello() != nullptr) return answer_hello(rank);
    if (const auto* progress = envelope.body_as_LoadProgress())
      return show_progress(rank, *progress);
    if (envelope.body_as_Ready() != nullptr) {
      --words_due_;
      return;
    }
    if (const auto* failed = envelope.body_as_Failed()) {
      // When another failed first this is a consequence: that one's own message or end comes too.
      const int first = arena_->first_failed_rank();
      if (first >= 0 && first != rank) return;
      if (failed->user_error()) throw_after_stop<UserError>(failed->what()->str());
      fail_with(failure_of_words(view(), rank, failed->what()->str()));
    }
    if (const auto* goodbye = envelope.body_as_Goodbye()) {
      ranks_[rank].gone = true;
      --words_due_;
      RankFigures figures{rank, static_cast<double>(goodbye->rss_kb()) / 1024.0,
                          static_cast<double>(goodbye->pss_kb()) / 1024.0, goodbye->bytes_sent(),
                          static_cast<double>(goodbye->wait_us()) / 1000.0};
      figures.messages = goodbye->messages();
      figures.graphs_recorded = goodbye->graphs_recorded();
      figures.graphs_replayed = goodbye->graphs_replayed();
      if (goodbye->expert_load() != nullptr)
        for (const msg::LayerLoad* layer : *goodbye->expert_load())
          figures.expert_load[layer->layer()].assign(layer->rows()->begin(), layer->rows()->end());
      figures_.push_back(std::move(figures));
      return;
    }
    if (envelope.body_as_StepDone() != nullptr) {
      --words_due_;
      return callbacks_.on_step_done(envelope);
    }
    fail_with(failure_of_words(
        view(), rank,
        fmt::format("it sent an unexpected {}", msg::EnumNameBody(envelope.body_type()))));
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
        events_.wait(kPollInterval);
      }
      fail_with(failure_of_words(view(), rank, error.what()));
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
    for (int rank = 0; rank < world_size(); ++rank) {
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
    fail_with(
        failure_of_stall(view(), std::chrono::duration<double>(now - last_progress_).count()));
  }

  LaunchView view() const {
    std::vector<int> pids;
    for (int rank = 0; rank < world_size(); ++rank) pids.push_back(supervisor_.pid(rank));
    return {*arena_, std::move(pids), actors::parallel_sizes(launch_), oom_kills_at_start_};
  }

  [[noreturn]] void fail_with(const Failure& failure) {
    // Read before the abort, at which every rank leaves its collective.
    const std::string table = world_size() > 1 ? comm::flight_table(*arena_, failure.rank) : "";
    const nlohmann::json dump = failure_dump(view(), failure, table);
    stop();
    throw WorldFailed(
        fmt::format("{}; {}", failure_line(failure), write_failure_dump(paths_.dump, dump)), table);
  }

  template <class Error>
  [[noreturn]] void throw_after_stop(const std::string& what) {
    stop();
    throw Error(what);
  }

  void stop() {
    progress_.finish();
    arena_->abort();
    supervisor_.terminate();  // those that start, load or wait for a plan do not look at the arena
    supervisor_.stop_all(kAbortGrace);
    if (!trace_) return;
    try {
      write_trace();
    } catch (const UserError& error) {
      spdlog::warn("{}", error.what());  // what ended the launch is said by an exception
    }
  }

  void write_trace() {
    write_trace_files(*arena_, paths_.trace);
    trace_.reset();
    spdlog::info("trace of {} ranks in {}: troupe trace summary {}", world_size(),
                 paths_.trace.string(), paths_.trace.string());
  }

  SignalReader signals_;
  msg::LaunchT launch_;
  WorldPaths paths_;
  std::optional<uint64_t> oom_kills_at_start_ = kernel_oom_kills();
  actors::ObservationShape observation_shape_;
  Callbacks callbacks_;
  std::optional<comm::Arena> arena_;
  std::optional<comm::Trace> trace_;
  Fd weights_fd_, kv_fd_, observation_fd_;
  Mapping observation_memory_;
  EventSet events_;
  std::optional<comm::LauncherEndpoint> endpoint_;
  Supervisor supervisor_;
  std::optional<StatusServer> status_server_;
  std::vector<RankView> ranks_;
  ProgressBar progress_{"loading weights"};
  std::vector<RankFigures> figures_;
  double load_s_ = 0;
  int words_due_ = 0;  // Ready, StepDone or Goodbye
  steady_clock::time_point last_progress_;
  uint64_t last_moved_ = 0;
};

World::World(msg::LaunchT launch, const model::ModelConfig& model, WorldPaths paths,
             Callbacks callbacks)
    : impl_(std::make_unique<Impl>(std::move(launch), model, std::move(paths),
                                   std::move(callbacks))) {
  impl_->start();
}
World::~World() = default;
double World::load_s() const { return impl_->load_s(); }
actors::Observation World::observation(int rank) const { return impl_->observation(rank); }
std::vector<RankStatus> World::rank_status() const { return impl_->rank_status(); }
comm::ActivitySnapshot World::activity(int rank) const { return impl_->activity(rank); }
void World::send(int rank, std::span<const std::byte> envelope) {
  impl_->send_plan(rank, envelope);
}
void World::poll(milliseconds timeout) { impl_->poll(timeout); }
int World::poll_fd() const { return impl_->poll_fd(); }
comm::Trace* World::trace() const { return impl_->trace(); }
void World::wake() { impl_->wake(); }
void World::publish(const comm::LaunchFigures& figures) { impl_->publish(figures); }
std::vector<RankFigures> World::shut_down() { return impl_->shut_down(); }

}  // namespace troupe::launcher
