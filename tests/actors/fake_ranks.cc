#include "fake_ranks.h"

#include <fmt/ranges.h>

namespace troupe::actors {

namespace {

const char* text(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return " stop";
    case FinishReason::kLength:
      return " length";
    case FinishReason::kCancelled:
      return " cancelled";
  }
  return " ?";
}

}  // namespace

FakeRanks::FakeRanks(const SchedulerLimits& limits, std::vector<Request> requests)
    : plans_(limits.world_size),
      mailbox_(kLauncherRank,
               [this](int rank, std::span<const std::byte> bytes) {
                 ++plans_sent_;
                 const msg::Envelope& envelope = verified(bytes, "scheduler");
                 plans_.at(rank) = {};
                 envelope.body_as_StepPlan()->UnPackTo(&plans_.at(rank));
               }),
      scheduler_(
          mailbox_, limits,
          [this](int index, std::span<const int32_t> tokens, FinishReason reason) {
            tokens_said.push_back(
                fmt::format("{}: {}{}", index, fmt::join(tokens, " "), text(reason)));
          },
          [this](int index, int rank, int row, int position, int count) {
            rows_shown.push_back(
                fmt::format("{}@{}: rows {}+{} at {}", index, rank, row, count, position));
          }) {
  for (Request& request : requests) scheduler_.submit(std::move(request));
  scheduler_.advance();
}

std::vector<int> FakeRanks::requests_on(int rank) const {
  std::vector<int> requests;
  for (const auto& sequence : plan(rank).sequences)
    requests.push_back(static_cast<int>(sequence->sequence));
  return requests;
}

msg::StepDoneT FakeRanks::default_answer(int rank) const {
  msg::StepDoneT done;
  done.step = plan(rank).step;
  for (const auto& s : plan(rank).sequences) {
    const int rows = static_cast<int>(s->tokens.size());
    done.counts.push_back(s->sample ? 1 : 0);
    if ((plan(rank).observe & static_cast<uint8_t>(msg::Observe::LogProbs)) != 0)
      for (int i = 0; i < rows - (s->sample ? 1 : 0); ++i)
        done.log_probs.push_back(-(s->first_position + i));
    if (!s->sample) continue;
    done.tokens.push_back(default_token(s->first_position + rows - s->num_drafts));
    done.drafts.insert(done.drafts.end(), plan(rank).draft_steps, kDefaultDraft);
  }
  return done;
}

msg::StepDoneT FakeRanks::answer_of(int rank, const std::vector<Sampled>& sequences) const {
  msg::StepDoneT done;
  done.step = plan(rank).step;
  for (const Sampled& s : sequences) {
    done.counts.push_back(static_cast<int32_t>(s.tokens.size()));
    done.tokens.insert(done.tokens.end(), s.tokens.begin(), s.tokens.end());
    done.drafts.insert(done.drafts.end(), s.drafts.begin(), s.drafts.end());
  }
  return done;
}

void FakeRanks::answer(int rank, const msg::StepDoneT& done) {
  flatbuffers::FlatBufferBuilder b;
  const msg::Address from(rank, msg::ActorKind::LmHead);
  const msg::Address to(kLauncherRank, msg::ActorKind::Scheduler);
  const auto body = msg::CreateStepDone(b, &done).Union();
  b.Finish(msg::CreateEnvelope(b, &from, &to, msg::Body::StepDone, body));
  mailbox_.deliver(*flatbuffers::GetRoot<msg::Envelope>(b.GetBufferPointer()));
}

void FakeRanks::step() {
  for (int rank = 0; rank < static_cast<int>(plans_.size()); ++rank)
    answer(rank, default_answer(rank));
}

}  // namespace troupe::actors
