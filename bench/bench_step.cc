// bench/bench_step.cc: what the parts of a decode step cost that compute nothing: a message between
// two actors of a rank, sent or replayed from a recorded step; handing a loop to a team, alone or
// inside a region; and that region.
//
//   bench_step [THREADS]
//
// Prints one JSON line: nanoseconds of each, medians and minima of 2000 rounds. The loops are
// empty, and the threads (default 2) spin: run it where each has a core for itself.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "actors/actor.h"
#include "base/error.h"
#include "layers/team.h"

namespace troupe::actors {
namespace {

constexpr int kRounds = 2000, kLayers = 60, kLoops = 100;

// "{"p50": ..., "min": ...}" of the nanoseconds that one of `count` things takes in round().
template <class Round>
std::string time_of(int count, const Round& round) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> ns;
  for (int i = 0; i < kRounds; ++i) {
    const auto start = Clock::now();
    round();
    ns.push_back(std::chrono::duration<double, std::nano>(Clock::now() - start).count() / count);
  }
  std::ranges::sort(ns);
  return fmt::format(R"({{"p50": {:.1f}, "min": {:.1f}}})", ns[ns.size() / 2], ns.front());
}

// Two actors that pass layers to and fro as attention and MoE do, and compute nothing.
class Attention final : public Actor {
 public:
  explicit Attention(Mailbox& mailbox) : Actor(mailbox, msg::ActorKind::Attention) {}
  int64_t layers_done = 0;

 private:
  void on(const msg::StepPlan&) override { begin(0); }
  void on(const msg::FeedForwardDone& done) override {
    ++layers_done;
    if (done.layer() + 1 < kLayers) begin(done.layer() + 1);
  }
  void begin(int layer) {
    const msg::Tensor rows(0, 1, 4096);
    tell(neighbour(msg::ActorKind::Moe),
         [&](auto& b) { return msg::CreateFeedForward(b, layer, 1, &rows, &rows, &rows); });
  }
};

class Moe final : public Actor {
 public:
  explicit Moe(Mailbox& mailbox) : Actor(mailbox, msg::ActorKind::Moe) {}

 private:
  void on(const msg::StepPlan&) override {}
  void on(const msg::FeedForward& message) override {
    tell(neighbour(msg::ActorKind::Attention),
         [&](auto& b) { return msg::CreateFeedForwardDone(b, message.layer()); });
  }
};

std::string time_of_messages(bool recorded) {
  Mailbox mailbox(0, [](int, std::span<const std::byte>) {});
  const Moe moe(mailbox);
  const Attention attention(mailbox);
  if (recorded) mailbox.use_graphs();
  flatbuffers::FlatBufferBuilder b;
  const auto none = b.CreateVector(std::vector<flatbuffers::Offset<msg::SequencePlan>>());
  const auto plan = msg::CreateStepPlan(b, 0, true, 1, 1, false, 0, 0, 0, none);
  const msg::Address from(kLauncherRank, msg::ActorKind::Scheduler), to(0, msg::ActorKind::Rank);
  b.Finish(msg::CreateEnvelope(b, &from, &to, msg::Body::StepPlan, plan.Union()));
  const auto& envelope = *flatbuffers::GetRoot<msg::Envelope>(b.GetBufferPointer());

  std::string time = time_of(2 * kLayers, [&] { mailbox.deliver(envelope); });

  TROUPE_CHECK(attention.layers_done == int64_t{kRounds} * kLayers, "{}", attention.layers_done);
  TROUPE_CHECK(mailbox.messages() == 2u * kLayers * (recorded ? 1 : kRounds), "{}",
               mailbox.messages());
  return time;
}

std::string time_of_loops(int threads) {
  int64_t parts = 0;
  std::string time = time_of(kLoops, [&] {
    for (int i = 0; i < kLoops; ++i)
      layers::parallel_for(threads, 1, [&](int64_t begin, int64_t) {
        if (begin == 0) ++parts;
      });
  });
  TROUPE_CHECK(parts == int64_t{kRounds} * kLoops, "{}", parts);
  return time;
}

int run(int threads) {
  const std::string sent = time_of_messages(false), replayed = time_of_messages(true);
  layers::Team team({.threads = threads, .spin = true});
  const layers::UseTeam use_team(team);
  const std::string alone = time_of_loops(threads);
  std::string in_region;
  layers::parallel_region([&] { in_region = time_of_loops(threads); });
  const std::string region = time_of(1, [] { layers::parallel_region([] {}); });
  fmt::print(R"({{"threads": {}, "message_sent_ns": {}, "message_replayed_ns": {}, "loop_ns": {}, )"
             R"("loop_in_region_ns": {}, "region_ns": {}}})"
             "\n",
             threads, sent, replayed, alone, in_region, region);
  return 0;
}

}  // namespace
}  // namespace troupe::actors

int main(int argc, char** argv) { return troupe::actors::run(argc > 1 ? std::atoi(argv[1]) : 2); }
