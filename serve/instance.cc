#include "serve/instance.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "base/error.h"
#include "comm/local_socket.h"
#include "serve/decode_worker.h"
#include "serve/pd_messages.h"
#include "serve/prefill_worker.h"
#include "serve/shared_kv.h"

namespace troupe::serve {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kSearchInterval{100};  // for a router
constexpr milliseconds kStateInterval{100};
constexpr milliseconds kPollTime{50};  // blocks that came back are seen then at the latest
constexpr milliseconds kLastWordsTime{500};

std::unique_ptr<PdWorker> make_worker(const InstanceOptions& options, launcher::Session& session,
                                      int64_t vocab_size, PdWorker::Say say) {
  if (options.role == pd::Role::Prefill)
    return std::make_unique<PrefillWorker>(session, std::make_unique<SharedKvSource>(session),
                                           vocab_size, std::move(say));
  return std::make_unique<DecodeWorker>(session, std::make_unique<SharedKvReader>(session),
                                        options.pull, vocab_size, std::move(say));
}

}  // namespace

std::string router_socket(const std::string& router_name) {
  return fmt::format("troupe-router-{}-{}", ::geteuid(), router_name);
}

Instance::Instance(const launcher::Config& config, const model::ModelConfig& model,
                   const InstanceOptions& options)
    : config_(config), model_(model), options_(options) {}

bool Instance::on_signal() {
  if (leaving_) return false;
  leaving_ = true;
  spdlog::info("leaving: what is open comes to its end; a second signal ends at once");
  return true;
}

void Instance::run() {
  if (model_.has_window())
    throw_user_error(
        "--pd-role {}: a model with sliding-window layers is served by one instance that does "
        "both; leave it out",
        role_name(options_.role));
  const launcher::Load load{.longest_prompt = model_.max_position_embeddings,
                            .longest_sequence = model_.max_position_embeddings,
                            .adopts = options_.role == pd::Role::Decode};
  launcher::Session session(
      config_, model_, load, 0,
      {.on_tokens = [this](int id, std::span<const int32_t> tokens,
                           actors::FinishReason reason) { worker_->on_tokens(id, tokens, reason); },
       .on_interrupt = [this] { return options_.child || on_signal(); },
       .on_terminate = [this] { return on_signal(); }});
  worker_ = make_worker(options_, session, model_.vocab_size,
                        [this](pd::BodyUnion body) { say_to_router(std::move(body)); });
  spdlog::info("{} instance ready; looking for router '{}'", role_name(options_.role),
               options_.router);
  try {
    work(session);
  } catch (const std::exception& failure) {
    worker_->fail_all(failure.what());
    const auto end = steady_clock::now() + kLastWordsTime;
    while (router_ && router_->wants_to_write() && !router_->broken() &&
           steady_clock::now() < end) {
      pollfd fd{router_->fd(), POLLOUT, 0};
      ::poll(&fd, 1, 10);
      router_->write_more();
    }
    throw;
  }
  worker_.reset();
  session.shut_down();
}

void Instance::work(launcher::Session& session) {
  while (!done(session)) {
    if (!router_ && !leaving_) look_for_router(session);
    wait(session);
    hear();
    session.poll(milliseconds(0));
    worker_->after_poll();
    tell_state(session);
  }
}

// A router that knows sends nothing new, so what is idle stays so.
bool Instance::done(const launcher::Session& session) const {
  return leaving_ && (farewell_ || !router_) && worker_->idle() && session.idle();
}

void Instance::wait(const launcher::Session& session) const {
  std::array<pollfd, 2> fds{{{.fd = session.poll_fd(), .events = POLLIN, .revents = 0},
                             {.fd = -1, .events = POLLIN, .revents = 0}}};
  if (router_) {
    fds[1].fd = router_->fd();
    if (router_->wants_to_write()) fds[1].events |= POLLOUT;
  }
  ::poll(fds.data(), fds.size(), static_cast<int>(kPollTime.count()));
}

void Instance::look_for_router(const launcher::Session& session) {
  if (steady_clock::now() - searched_ < kSearchInterval) return;
  searched_ = steady_clock::now();
  Fd socket = comm::connect_local(router_socket(options_.router), SOCK_STREAM);
  if (!socket || comm::peer_uid(socket.get()) != ::geteuid()) return;
  router_.emplace(std::move(socket));
  pd::JoinT join;
  join.instance =
      std::make_unique<pd::InstanceT>(describe_instance(options_.role, config_, model_, session));
  const std::vector<int> files = worker_->describe(*join.instance);
  say(*router_, body_of(std::move(join)), files);
}

void Instance::hear() {
  if (!router_) return;
  router_->write_more();
  router_->read_more([this](std::span<const uint8_t> bytes, std::vector<Fd> files) {
    hear(bytes, std::move(files));
  });
  if (router_->broken()) lose_router();
}

void Instance::hear(std::span<const uint8_t> bytes, std::vector<Fd> files) {
  const pd::Envelope* message = verified_message(bytes);
  if (message == nullptr) {
    spdlog::warn("router '{}' sent what is no message", options_.router);
    return router_->close();
  }
  if (const auto* welcome = message->body_as_Welcome()) {
    welcome_ = true;
    spdlog::info("joined router '{}' as {} {}", options_.router, role_name(options_.role),
                 welcome->instance());
    return;
  }
  if (const auto* refused = message->body_as_Refused())
    throw_user_error("router '{}' refuses this instance: {}", options_.router,
                     refused->why()->str());
  if (message->body_as_Farewell() != nullptr) {
    farewell_ = true;
    return;
  }
  if (worker_->hear(*message, std::move(files))) return;
  spdlog::warn("router '{}' sent an unexpected {}", options_.router,
               pd::EnumNameBody(message->body_type()));
  router_->close();
}

void Instance::lose_router() {
  spdlog::info("router '{}' has gone", options_.router);
  router_.reset();
  welcome_ = false;
  worker_->forget_router();
  worker_->after_poll();
}

void Instance::say_to_router(pd::BodyUnion body) {
  if (router_) say(*router_, std::move(body));
}

void Instance::tell_state(const launcher::Session& session) {
  if (!router_ || !welcome_ || steady_clock::now() - told_ < kStateInterval) return;
  told_ = steady_clock::now();
  const actors::SchedulerState now = session.state();
  const actors::StepStatistics& steps = session.statistics();
  pd::StateT state;
  state.leaving = leaving_;
  state.running = now.running;
  state.waiting = now.waiting;
  state.held = now.held;
  state.blocks_in_use = now.blocks_in_use;
  state.blocks = now.blocks;
  state.prefill_steps = steps.prefill_steps;
  state.decode_steps = steps.decode_steps;
  state.prefill_tokens = steps.prefill_tokens;
  state.admitted_tokens = steps.admitted_tokens;
  state.reused_tokens = steps.reused_tokens;
  state.preemptions = steps.preemptions;
  state.drafted_at.assign(steps.drafted_at.begin(), steps.drafted_at.end());
  state.accepted_at.assign(steps.accepted_at.begin(), steps.accepted_at.end());
  for (int rank = 0; rank < session.limits().world_size; ++rank) {
    const comm::ActivitySnapshot a = session.activity(rank);
    const actors::SchedulerState load = session.dp_rank_state(rank / session.limits().attn_tp_size);
    state.ranks.emplace_back(static_cast<uint32_t>(a.stage), a.layer, a.step,
                             static_cast<uint32_t>(a.operation), a.waiting_for, load.running,
                             load.blocks_in_use, load.blocks);
  }
  worker_->add_figures(state);
  say(*router_, body_of(std::move(state)));
}

}  // namespace troupe::serve
