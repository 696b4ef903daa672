#include "launcher/session.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>

#include <map>
#include <thread>

#include "base/error.h"

namespace troupe::launcher {
namespace {

using actors::FinishReason;
using std::chrono::milliseconds;
using Ids = std::vector<int32_t>;

// Two ranks with the trained model, and what they have said.
class SessionTest : public testing::Test {
 protected:
  SessionTest() {
    config_.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
    config_.parallel.world_size = 2;
    config_.scheduler.batch_size = 2;
    config_.runtime.comm_buffer_mb = 2;
    model_ = model::read_model_config(config_.model.model_path);
    session_.emplace(
        config_, model_, Load{.longest_prompt = 16, .longest_sequence = 256}, 0,
        SessionCallbacks{.on_tokens =
                             [this](int id, std::span<const int32_t> tokens, FinishReason reason) {
                               said_[id].insert(said_[id].end(), tokens.begin(), tokens.end());
                               reasons_[id] = reason;
                             },
                         .on_interrupt = [this] { return on_interrupt_ && on_interrupt_(); }});
  }

  static actors::Request request(Ids prompt, int max_new_tokens) {
    actors::Request request;
    request.prompt = std::move(prompt);
    request.max_new_tokens = max_new_tokens;
    return request;
  }
  void finish(int id) {
    session_->run_until([&] { return reasons_[id] != FinishReason::kNone; });
  }

  Config config_;
  model::ModelConfig model_;
  std::map<int, Ids> said_;
  std::map<int, FinishReason> reasons_;
  std::function<bool()> on_interrupt_;
  std::optional<Session> session_;
};

TEST_F(SessionTest, AnswersRequestsThatComeAtAnyTimeAlikeAndForgetsThem) {
  const int first = session_->submit(request({1, 2, 3}, 20));
  session_->run_until([&] { return said_[first].size() >= 5; });
  const int beside = session_->submit(request({1, 2, 3}, 20));
  finish(beside);
  const int later = session_->submit(request({1, 2, 3}, 20));
  finish(later);

  EXPECT_EQ(said_[first].size(), 20);
  EXPECT_EQ(said_[beside], said_[first]);
  EXPECT_EQ(said_[later], said_[first]);
  EXPECT_EQ(session_->completion(later).tokens, said_[later]);
  for (const int id : {first, beside, later}) session_->release(id);
  session_->run_until([&] { return session_->idle(); });
  EXPECT_THROW(session_->completion(first), std::out_of_range);
  EXPECT_EQ(session_->shut_down().size(), 2);
}

TEST_F(SessionTest, ACancelledRequestSaysNoMoreAndOthersGoOn) {
  const int whole = session_->submit(request({5, 6}, 30));
  const int cut = session_->submit(request({7, 8, 9}, 200));
  const int waiting = session_->submit(request({5, 6}, 30));  // batch_size is 2
  session_->run_until([&] { return said_[cut].size() >= 3; });
  session_->cancel(cut);
  const size_t said = said_[cut].size();
  finish(waiting);

  EXPECT_EQ(reasons_[cut], FinishReason::kCancelled);
  EXPECT_EQ(said_[cut].size(), said);
  EXPECT_EQ(said_[waiting], said_[whole]);
  session_->run_until([&] { return session_->idle(); });
}

// As a program does that waits for other things too.
TEST_F(SessionTest, AnotherEventLoopCanWaitForItsDescriptor) {
  const int id = session_->submit(request({1, 2, 3}, 20));
  while (reasons_[id] == FinishReason::kNone) {
    pollfd fd{session_->poll_fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&fd, 1, 30'000), 1);
    session_->poll(milliseconds(0));
  }

  EXPECT_EQ(said_[id].size(), 20);
}

TEST_F(SessionTest, AnotherThreadEndsAWait) {
  std::atomic<bool> woken = false;
  std::thread other([&] {
    woken = true;
    session_->wake();
  });
  session_->run_until([&] { return woken.load(); });
  other.join();

  EXPECT_TRUE(session_->idle());
}

TEST_F(SessionTest, CtrlCGoesToTheProgramFirst) {
  const int id = session_->submit(request({1, 2, 3}, 200));
  on_interrupt_ = [&] {
    session_->cancel(id);
    return true;
  };
  session_->run_until([&] { return said_[id].size() >= 2; });
  ::kill(::getpid(), SIGINT);
  finish(id);
  EXPECT_EQ(reasons_[id], FinishReason::kCancelled);

  on_interrupt_ = {};
  ::kill(::getpid(), SIGINT);
  EXPECT_THROW(session_->run_until([] { return false; }), Interrupted);
}

TEST_F(SessionTest, RefusesAPromptThatIsTooLongAndGoesOn) {
  EXPECT_THROW(session_->submit(request(Ids(model_.max_position_embeddings + 1, 1), 1)), UserError);
  const int id = session_->submit(request({1, 2, 3}, 2));
  finish(id);

  EXPECT_EQ(said_[id].size(), 2);
}

}  // namespace
}  // namespace troupe::launcher
