#include "actors/actor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

#include "allocation_count.h"
#include "base/error.h"

namespace troupe::actors {
namespace {

using flatbuffers::FlatBufferBuilder;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const msg::Tensor kNowhere;

template <class Message>
std::span<const std::byte> finish(FlatBufferBuilder& b, const msg::Address& from,
                                  const msg::Address& to, flatbuffers::Offset<Message> body) {
  b.Finish(msg::CreateEnvelope(b, &from, &to, msg::BodyTraits<Message>::enum_value, body.Union()));
  return {reinterpret_cast<const std::byte*>(b.GetBufferPointer()), b.GetSize()};
}

const msg::Envelope& envelope_of(const FlatBufferBuilder& b) {
  return *flatbuffers::GetRoot<msg::Envelope>(b.GetBufferPointer());
}

// From the scheduler to all actors of rank 3.
FlatBufferBuilder plan_of_step(uint64_t step) {
  FlatBufferBuilder b;
  const auto none = b.CreateVector(std::vector<flatbuffers::Offset<msg::SequencePlan>>());
  msg::StepPlanBuilder plan(b);
  plan.add_step(step);
  plan.add_sequences(none);
  finish(b, {kLauncherRank, msg::ActorKind::Scheduler}, {3, msg::ActorKind::Rank}, plan.Finish());
  return b;
}

[[noreturn]] void nobody_sends(int rank, std::span<const std::byte>) {
  throw std::logic_error(fmt::format("sent to rank {}", rank));
}

// ---- mailbox ------------------------------------------------------------------------------------

// Writes down what it hears, and then says what the test has told it to.
class Scripted final : public Actor {
 public:
  Scripted(Mailbox& mailbox, msg::ActorKind kind, std::vector<std::string>& log)
      : Actor(mailbox, kind), log_(log) {}

  // On the plan, or on hearing that `layer` is done: say that these layers are done.
  struct Say {
    msg::ActorKind to;
    int layer;
  };
  std::map<int, std::vector<Say>> after_layer;
  std::vector<Say> after_plan;

 private:
  void on(const msg::StepPlan& plan) override {
    log_.push_back(fmt::format("{} plan {}", actor_name(address()), plan.step()));
    say(after_plan);
  }
  void on(const msg::FeedForwardDone& done) override {
    const int layer = done.layer();
    say(after_layer[layer]);
    // Read again: what the handler says must not overwrite what it hears.
    EXPECT_EQ(done.layer(), layer);
    log_.push_back(fmt::format("{} {}", actor_name(address()), layer));
  }
  void say(const std::vector<Say>& what) {
    for (const Say& s : what) send(neighbour(s.to), msg::CreateFeedForwardDone(builder(), s.layer));
  }

  std::vector<std::string>& log_;
};

class MailboxTest : public testing::Test {
 protected:
  std::vector<std::string> log_;
  Mailbox mailbox_{3, nobody_sends};
};

TEST_F(MailboxTest, AMessageToTheRankReachesEveryActorInOrderOfRegistration) {
  const Scripted lm_head(mailbox_, msg::ActorKind::LmHead, log_);
  const Scripted moe(mailbox_, msg::ActorKind::Moe, log_);
  const Scripted attention(mailbox_, msg::ActorKind::Attention, log_);

  mailbox_.deliver(envelope_of(plan_of_step(7)));

  EXPECT_THAT(log_, ElementsAre("lm_head@3 plan 7", "moe@3 plan 7", "attention@3 plan 7"));
}

TEST_F(MailboxTest, MessagesAreHeardInTheOrderInWhichTheyWereSent) {
  Scripted attention(mailbox_, msg::ActorKind::Attention, log_);
  Scripted moe(mailbox_, msg::ActorKind::Moe, log_);
  attention.after_plan = {{msg::ActorKind::Moe, 1}, {msg::ActorKind::Moe, 2}};
  moe.after_plan = {{msg::ActorKind::Attention, 3}};
  moe.after_layer[1] = {{msg::ActorKind::Moe, 4}, {msg::ActorKind::Attention, 5}};

  mailbox_.deliver(envelope_of(plan_of_step(1)));

  EXPECT_THAT(log_, ElementsAre("attention@3 plan 1", "moe@3 plan 1", "moe@3 1", "moe@3 2",
                                "attention@3 3", "moe@3 4", "attention@3 5"));
}

TEST_F(MailboxTest, AMessageStaysWholeWhileItsHandlerFillsTheQueue) {
  Scripted moe(mailbox_, msg::ActorKind::Moe, log_);
  for (int layer = 0; layer < 7; ++layer)
    moe.after_layer[100].push_back({msg::ActorKind::Moe, layer});
  const FlatBufferBuilder plan = plan_of_step(0);

  for (int i = 0; i < 8; ++i) {  // beginning with another slot each time
    moe.after_plan = {{msg::ActorKind::Moe, 100}};
    log_.clear();
    mailbox_.deliver(envelope_of(plan));
    EXPECT_THAT(log_, ElementsAre("moe@3 plan 0", "moe@3 100", "moe@3 0", "moe@3 1", "moe@3 2",
                                  "moe@3 3", "moe@3 4", "moe@3 5", "moe@3 6"));
    moe.after_plan = {{msg::ActorKind::Moe, 200}};
    mailbox_.deliver(envelope_of(plan));
  }
}

TEST_F(MailboxTest, MoreMessagesThanTheQueueHoldsAreAnErrorNotAnOverwrite) {
  Scripted moe(mailbox_, msg::ActorKind::Moe, log_);
  for (int layer = 0; layer < 9; ++layer) moe.after_plan.push_back({msg::ActorKind::Moe, layer});

  EXPECT_THROW(mailbox_.deliver(envelope_of(plan_of_step(0))), std::logic_error);
}

TEST_F(MailboxTest, AMessageBeingHandledStillFillsItsPlaceInTheQueue) {
  Scripted moe(mailbox_, msg::ActorKind::Moe, log_);
  moe.after_plan = {{msg::ActorKind::Moe, 100}};
  for (int layer = 0; layer < 8; ++layer)
    moe.after_layer[100].push_back({msg::ActorKind::Moe, layer});

  EXPECT_THROW(mailbox_.deliver(envelope_of(plan_of_step(0))), std::logic_error);
}

TEST_F(MailboxTest, AMessageToAnActorWhoIsNotHereIsAnErrorThatNamesBoth) {
  Scripted attention(mailbox_, msg::ActorKind::Attention, log_);
  attention.after_plan = {{msg::ActorKind::Mtp, 0}};

  try {
    mailbox_.deliver(envelope_of(plan_of_step(0)));
    FAIL() << "delivered";
  } catch (const RankError& error) {
    EXPECT_STREQ(error.what(), "attention@3 sent FeedForwardDone to mtp@3, who is not here");
  }
}

TEST_F(MailboxTest, AMessageThatAnActorDoesNotHearIsAnErrorThatNamesBoth) {
  class Deaf final : public Actor {
    using Actor::Actor;
  };
  const Deaf mtp(mailbox_, msg::ActorKind::Mtp);

  for (const bool failed : {false, true}) {
    FlatBufferBuilder b = plan_of_step(0);
    if (failed) {  // a message of the processes, which no actor hears
      b.Clear();
      finish(b, {kLauncherRank, msg::ActorKind::Scheduler}, {3, msg::ActorKind::Mtp},
             msg::CreateFailedDirect(b, "what"));
    }
    try {
      mailbox_.deliver(envelope_of(b));
      FAIL() << "heard";
    } catch (const std::logic_error& error) {
      EXPECT_EQ(error.what(), fmt::format("mtp@3 does not hear {} (from scheduler)",
                                          failed ? "Failed" : "StepPlan"));
    }
  }
}

TEST(Mailbox, MessagesToAnotherProcessGoThroughSendRemote) {
  class Reporter final : public Actor {
   public:
    explicit Reporter(Mailbox& mailbox) : Actor(mailbox, msg::ActorKind::LmHead) {}

   private:
    void on(const msg::StepPlan&) override {
      send({kLauncherRank, msg::ActorKind::Scheduler}, msg::CreateFeedForwardDone(builder(), 11));
      send({5, msg::ActorKind::Moe}, msg::CreateFeedForwardDone(builder(), 12));
    }
  };
  std::vector<std::string> sent;
  Mailbox mailbox(3, [&](int rank, std::span<const std::byte> bytes) {
    const msg::Envelope& envelope = verified(bytes, "lm_head@3");
    sent.push_back(fmt::format("{}: {} to {}: {}", rank, actor_name(*envelope.from()),
                               actor_name(*envelope.to()),
                               envelope.body_as_FeedForwardDone()->layer()));
  });
  const Reporter reporter(mailbox);

  mailbox.deliver(envelope_of(plan_of_step(0)));

  EXPECT_THAT(sent, ElementsAre("-1: lm_head@3 to scheduler: 11", "5: lm_head@3 to moe@5: 12"));
}

// Two actors that pass a layer number to and fro, as attention and MoE do.
class Runner final : public Actor {
 public:
  Runner(Mailbox& mailbox, msg::ActorKind kind, msg::ActorKind other, int last_layer)
      : Actor(mailbox, kind), other_(other), last_layer_(last_layer) {}
  int layers_heard() const { return layers_heard_; }

 private:
  void on(const msg::StepPlan&) override {
    if (address().kind() == msg::ActorKind::Attention) pass(0);
  }
  void on(const msg::FeedForward& message) override {
    ++layers_heard_;
    if (message.layer() < last_layer_) pass(message.layer() + 1);
  }
  void pass(int layer) {
    auto& b = builder();
    msg::FeedForwardBuilder message(b);
    message.add_layer(layer);
    message.add_normed(&kNowhere);
    message.add_hidden(&kNowhere);
    send(neighbour(other_), message.Finish());
  }

  msg::ActorKind other_;
  int last_layer_;
  int layers_heard_ = 0;
};

TEST_F(MailboxTest, NothingIsAllocatedAfterTheFirstStep) {
  constexpr int kLastLayer = 10'000;
  const Runner attention(mailbox_, msg::ActorKind::Attention, msg::ActorKind::Moe, kLastLayer);
  const Runner moe(mailbox_, msg::ActorKind::Moe, msg::ActorKind::Attention, kLastLayer);
  const FlatBufferBuilder plan = plan_of_step(0);
  mailbox_.deliver(envelope_of(plan));

  const int64_t before = allocations_of_this_thread();
  mailbox_.deliver(envelope_of(plan));
  const int64_t after = allocations_of_this_thread();

  EXPECT_EQ(attention.layers_heard() + moe.layers_heard(), 2 * (kLastLayer + 1));
  EXPECT_EQ(after - before, 0);
  EXPECT_GT(allocations_of_this_thread(), 0) << "operator new is not counted";
}

// ---- verified -----------------------------------------------------------------------------------

std::vector<std::byte> step_plan_bytes() {
  FlatBufferBuilder b;
  const msg::Sampling sampling(0.5f, 0.9f, 40, 0, 1234, 0, 1, 0, 0, -1);
  std::vector<flatbuffers::Offset<msg::SequencePlan>> sequences;
  const std::vector<int32_t> tokens = {5, 6, 7}, table = {0, 9};
  sequences.push_back(
      msg::CreateSequencePlanDirect(b, 1, 126, &tokens, 2, true, -1, &table, &sampling));
  sequences.push_back(
      msg::CreateSequencePlanDirect(b, 2, 0, &tokens, 0, false, 8, &table, &sampling));
  const auto vector = b.CreateVector(sequences);
  msg::StepPlanBuilder plan(b);
  plan.add_step(17);
  plan.add_max_rows(6);
  plan.add_max_sequences(2);
  plan.add_run_mtp(true);
  plan.add_draft_steps(2);
  plan.add_sequences(vector);
  const auto bytes = finish(b, {kLauncherRank, msg::ActorKind::Scheduler},
                            {3, msg::ActorKind::Rank}, plan.Finish());
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> step_done_bytes() {
  FlatBufferBuilder b;
  const std::vector<int32_t> counts = {3, 0}, tokens = {6, 7, 8}, drafts = {9, 10};
  const std::vector<double> log_probs = {-0.5, -1.25, -3};
  const auto bytes =
      finish(b, {3, msg::ActorKind::LmHead}, {kLauncherRank, msg::ActorKind::Scheduler},
             msg::CreateStepDoneDirect(b, 17, &counts, &tokens, &drafts, &log_probs, 99));
  return {bytes.begin(), bytes.end()};
}

// Reads every field there is, if the bytes pass for a message. Anything but a RankError that names
// the sender fails; reading outside the bytes is for the sanitizers to see.
bool passes(std::span<const std::byte> bytes) {
  // Exactly as large as the message, aligned as a received one.
  const std::unique_ptr<std::byte[]> copy(new std::byte[bytes.size()]);
  std::ranges::copy(bytes, copy.get());
  try {
    msg::EnvelopeT read;
    const msg::Envelope& envelope = verified({copy.get(), bytes.size()}, "rank 3");
    envelope.UnPackTo(&read);
    actor_name(*envelope.from());
    return true;
  } catch (const RankError& error) {
    EXPECT_THAT(error.what(), HasSubstr("rank 3"));
    return false;
  }
}

class Verified : public testing::TestWithParam<std::vector<std::byte> (*)()> {
 protected:
  std::vector<std::byte> bytes_ = GetParam()();
};

TEST_P(Verified, LetsWholeMessagesPass) { EXPECT_TRUE(passes(bytes_)); }

TEST_P(Verified, SurvivesEveryChangeOfAByte) {
  int refused = 0;
  for (std::byte& byte : bytes_) {
    const std::byte original = byte;
    for (int value = 0; value < 256; ++value) {
      byte = static_cast<std::byte>(value);
      refused += passes(bytes_) ? 0 : 1;
    }
    byte = original;
  }
  EXPECT_GT(refused, 1000);  // else nothing was verified
}

TEST_P(Verified, RefusesTruncatedBytesOrReadsWhatIsLeft) {
  for (size_t size = 0; size < bytes_.size(); ++size) {
    const bool whole = passes(std::span(bytes_).first(size));
    if (size < bytes_.size() / 2) {
      EXPECT_FALSE(whole) << size << " bytes of " << bytes_.size();
    }
  }
}

TEST_P(Verified, RefusesGarbage) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::byte> garbage(random() % 400);
    for (std::byte& byte : garbage) byte = static_cast<std::byte>(random());
    EXPECT_FALSE(passes(garbage));
  }
  // Half of it true: a burst of wrong bytes.
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::byte> damaged = bytes_;
    for (size_t at = random() % damaged.size(), n = 0; n < 8; ++n)
      damaged[(at + n) % damaged.size()] = static_cast<std::byte>(random());
    passes(damaged);
  }
}

INSTANTIATE_TEST_SUITE_P(Messages, Verified, testing::Values(&step_plan_bytes, &step_done_bytes),
                         [](const auto& message) {
                           return message.index == 0 ? "StepPlan" : "StepDone";
                         });

TEST(Verify, AnErrorNamesTheSenderAndTheSize) {
  const std::array<std::byte, 3> bytes{};
  try {
    verified(bytes, "rank 5");
    FAIL() << "verified";
  } catch (const RankError& error) {
    EXPECT_STREQ(error.what(), "a message of 3 bytes from rank 5 is not a valid Envelope");
  }
}

// FlatBuffers aligns the elements of an empty vector to nothing.
TEST(Verify, LetsAnAnswerWithoutLogProbabilitiesPass) {
  for (int tokens = 0; tokens < 4; ++tokens) {
    FlatBufferBuilder b;
    const std::vector<int32_t> counts = {tokens}, sampled(tokens, 5), none;
    const std::vector<double> no_log_probs;
    const auto body = msg::CreateStepDoneDirect(b, 17, &counts, &sampled, &none, &no_log_probs);
    EXPECT_NO_THROW(verified(
        finish(b, {3, msg::ActorKind::LmHead}, {kLauncherRank, msg::ActorKind::Scheduler}, body),
        "rank 3"));
  }
}

TEST(Verify, ABodyOfAnUnknownTypeIsAnError) {
  for (const int type : {0, static_cast<int>(msg::Body::MAX) + 1, 255}) {
    FlatBufferBuilder b;
    const msg::Address from(3, msg::ActorKind::LmHead),
        to(kLauncherRank, msg::ActorKind::Scheduler);
    const auto body = msg::CreateShutdown(b);
    b.Finish(msg::CreateEnvelope(b, &from, &to, static_cast<msg::Body>(type), body.Union()));
    try {
      verified({reinterpret_cast<const std::byte*>(b.GetBufferPointer()), b.GetSize()}, "rank 3");
      FAIL() << "verified type " << type;
    } catch (const RankError& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("from rank 3"), HasSubstr(std::to_string(type))));
    }
  }
}

TEST(ActorName, IsKindAtRankAndTheSchedulerHasNone) {
  EXPECT_EQ(actor_name({3, msg::ActorKind::Attention}), "attention@3");
  EXPECT_EQ(actor_name({0, msg::ActorKind::LmHead}), "lm_head@0");
  EXPECT_EQ(actor_name({kLauncherRank, msg::ActorKind::Scheduler}), "scheduler");
  EXPECT_EQ(actor_name({1, static_cast<msg::ActorKind>(-7)}), "unknown@1");
}

}  // namespace
}  // namespace troupe::actors
