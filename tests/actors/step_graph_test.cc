#include "actors/step_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "actors/actor.h"
#include "base/error.h"

namespace troupe::actors {
namespace {

using flatbuffers::FlatBufferBuilder;
using testing::ElementsAre;
using testing::HasSubstr;

const msg::Tensor kNowhere;

// To all actors of rank 3: `rows` tokens of one sequence.
FlatBufferBuilder plan(int rows, bool decode = true) {
  FlatBufferBuilder b;
  const msg::Sampling sampling;
  const std::vector<int32_t> tokens(rows), table = {0};
  const std::vector<flatbuffers::Offset<msg::SequencePlan>> sequences = {
      msg::CreateSequencePlanDirect(b, 0, 0, &tokens, 0, true, -1, &table, &sampling)};
  const auto vector = b.CreateVector(sequences);
  msg::StepPlanBuilder plan(b);
  plan.add_decode(decode);
  plan.add_max_rows(rows);
  plan.add_max_sequences(1);
  plan.add_sequences(vector);
  const msg::Address from(kLauncherRank, msg::ActorKind::Scheduler), to(3, msg::ActorKind::Rank);
  b.Finish(msg::CreateEnvelope(b, &from, &to, msg::Body::StepPlan, plan.Finish().Union()));
  return b;
}

// Attention, which hands `layers` layers to MoE and back, and then has MTP's layer called for.
class Attention final : public Actor {
 public:
  Attention(Mailbox& mailbox, std::vector<std::string>& log)
      : Actor(mailbox, msg::ActorKind::Attention), log_(log) {}

  int layers = 2;
  bool drafts = false;

 private:
  void on(const msg::StepPlan& plan) override {
    log_.push_back(fmt::format("plan of {}", plan.max_rows()));
    next(0);
  }
  void on(const msg::FeedForwardDone& done) override {
    log_.push_back(fmt::format("done {}", done.layer()));
    if (done.layer() + 1 < layers) return next(done.layer() + 1);
    if (done.layer() < kMtpLayer && drafts)
      send(neighbour(msg::ActorKind::Attention),
           msg::CreateForwardLayers(builder(), kMtpLayer, kMtpLayer + 1, 1, &kNowhere, &kNowhere,
                                    &kNowhere));
  }
  void on(const msg::ForwardLayers& forward, const msg::Address&) override {
    next(forward.first_layer());
  }
  void next(int layer) {
    tell(neighbour(msg::ActorKind::Moe), [&](auto& b) {
      return msg::CreateFeedForward(b, layer, 1, &kNowhere, &kNowhere, &kNowhere);
    });
  }

  static constexpr int kMtpLayer = 100;
  std::vector<std::string>& log_;
};

class Moe final : public Actor {
 public:
  Moe(Mailbox& mailbox, std::vector<std::string>& log)
      : Actor(mailbox, msg::ActorKind::Moe), log_(log) {}

 private:
  void on(const msg::StepPlan&) override {}
  void on(const msg::FeedForward& message) override {
    log_.push_back(fmt::format("layer {}", message.layer()));
    tell(neighbour(msg::ActorKind::Attention),
         [&](auto& b) { return msg::CreateFeedForwardDone(b, message.layer()); });
  }

  std::vector<std::string>& log_;
};

class RecordedSteps : public testing::Test {
 protected:
  RecordedSteps() { mailbox_.use_graphs(); }

  // What is heard in a step, and how many messages that took.
  std::vector<std::string> step(int rows, bool decode = true) {
    log_.clear();
    const FlatBufferBuilder b = plan(rows, decode);
    const uint64_t before = mailbox_.messages();
    mailbox_.deliver(*flatbuffers::GetRoot<msg::Envelope>(b.GetBufferPointer()));
    sent_ = mailbox_.messages() - before;
    return log_;
  }
  const StepGraphs::Counts& counts() const { return mailbox_.graphs()->counts(); }

  std::vector<std::string> log_;
  uint64_t sent_ = 0;
  Mailbox mailbox_{3, [](int, std::span<const std::byte>) {}};
  Moe moe_{mailbox_, log_};
  Attention attention_{mailbox_, log_};
};

TEST_F(RecordedSteps, AreHeardAsTheFirstOneWasWithoutAMessage) {
  const auto heard = ElementsAre("plan of 1", "layer 0", "done 0", "layer 1", "done 1");

  EXPECT_THAT(step(1), heard);
  EXPECT_EQ(sent_, 4);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(step(1), heard);
    EXPECT_EQ(sent_, 0);
  }
  EXPECT_EQ(counts().recorded, 1);
  EXPECT_EQ(counts().replayed, 3);
}

TEST_F(RecordedSteps, AreOfOneShapeEach) {
  for (const int rows : {1, 2, 1, 2}) step(rows);

  EXPECT_EQ(counts().recorded, 2);
  EXPECT_EQ(counts().replayed, 2);
}

TEST_F(RecordedSteps, AreThoseOfDecodingAlone) {
  for (int i = 0; i < 2; ++i) {
    step(5, false);
    EXPECT_EQ(sent_, 4);
  }

  EXPECT_EQ(counts().recorded, 0);
}

TEST_F(RecordedSteps, WithDraftsAreAListForEachPass) {
  attention_.drafts = true;
  const auto heard =
      ElementsAre("plan of 1", "layer 0", "done 0", "layer 1", "done 1", "layer 100", "done 100");

  EXPECT_THAT(step(1), heard);
  EXPECT_EQ(sent_, 7);
  EXPECT_THAT(step(1), heard);

  EXPECT_EQ(sent_, 1);  // ForwardLayers
  EXPECT_EQ(counts().recorded, 2);
  EXPECT_EQ(counts().replayed, 2);
}

TEST_F(RecordedSteps, MakeRoomForOthersTheLeastRecentlyUsedFirst) {
  const int most = StepGraphs::kMaxGraphs;
  for (int rows = 1; rows <= most; ++rows) step(rows);
  step(1);
  EXPECT_EQ(counts().replayed, 1);

  step(most + 1);  // in place of 2

  step(1);
  step(most + 1);
  EXPECT_EQ(counts().replayed, 3);
  EXPECT_THAT(step(2), ElementsAre("plan of 2", "layer 0", "done 0", "layer 1", "done 1"));
  EXPECT_EQ(counts().replayed, 3);
  EXPECT_EQ(counts().recorded, static_cast<uint64_t>(most) + 2);
}

TEST_F(RecordedSteps, ThatTakeAnotherCourseAreAnError) {
  step(1);

  attention_.layers = 3;
  try {
    step(1);
    FAIL() << "replayed";
  } catch (const std::logic_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("FeedForward after the last of 4 messages"));
  }
  attention_.layers = 1;
  EXPECT_THROW(step(1), std::logic_error);
}

}  // namespace
}  // namespace troupe::actors
