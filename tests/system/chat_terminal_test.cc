// `troupe chat` as somebody sees it who types.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>

#include "tests/system/golden.h"
#include "tests/system/jobs.h"
#include "tests/system/terminal_process.h"
#include "tests/system/troupe_process.h"

namespace troupe::system_tests {
namespace {

using Words = std::vector<std::string>;

constexpr char kPrompt[] = "\033[?2004h";  // bracketed paste goes on with each prompt

class ChatTerminal : public testing::Test {
 protected:
  Words arguments(const Words& more = {}) const { return tiny_moe_words("chat", 8, more); }
  std::map<std::string, std::string> environment() const {
    return {{"XDG_STATE_HOME", state_.path()}, {"HOME", state_.path()}};
  }

  model::TemporaryDirectory state_;
};

TEST_F(ChatTerminal, AnswersAndLeavesAtCtrlD) {
  TerminalProcess chat(arguments(), environment());
  chat.read_until(kPrompt);
  chat.type("Once upon a time\r");
  const std::string screen = chat.read_until(kPrompt);
  chat.type("\004");

  EXPECT_CONTAINS(screen, "there was");
  EXPECT_CONTAINS(screen, "ended after 8 tokens");
  EXPECT_EQ(chat.wait(), 0);
}

TEST_F(ChatTerminal, CtrlCStopsTheAnswerAndKeepsTheSession) {
  // Random weights never come to an end, and a slow rank leaves minutes to press the keys.
  TerminalProcess chat(
      arguments({"--raw", "--inject", "slow:rank=0,stage=decode,step=2,factor=100", "--set",
                 "model_config.with_ckpt=False", "--set", "scheduler_config.max_new_tokens=2000"}),
      environment());
  chat.read_until(kPrompt);
  chat.type("one\r");
  chat.read_until("one\r\n\033[?2004l");
  chat.type("\003");
  chat.read_until("(stopped)");
  chat.read_until(kPrompt);
  chat.type("/set max_new_tokens 3\r");
  chat.read_until(kPrompt);
  chat.type("/stats\r");
  chat.read_until("session: 1 answers");
  chat.read_until(kPrompt);
  chat.type("\004");
  EXPECT_EQ(chat.wait(), 0);
}

TEST_F(ChatTerminal, CtrlCDropsWhatIsTypedAndGoesOn) {
  TerminalProcess chat(arguments(), environment());
  chat.read_until(kPrompt);
  chat.type("half a line\003");
  chat.read_until("^C");
  chat.read_until(kPrompt);
  chat.type("/history\r");
  EXPECT_EQ(chat.read_until(kPrompt).find("half"), std::string::npos);
}

TEST_F(ChatTerminal, PastedLinesAreOneMessageAndCommandsInsideAreText) {
  TerminalProcess chat(arguments(), environment());
  chat.read_until(kPrompt);
  chat.type("\033[200~first\r/quit\r\nça va\033[201~");
  chat.type("\r");
  chat.read_until(kPrompt);
  chat.type("/history\r");
  chat.read_until("user: first\r\n/quit\r\nça va\r\nassistant:");
}

TEST_F(ChatTerminal, KeepsTheHistoryForTheNextStart) {
  {
    TerminalProcess chat(arguments(), environment());
    chat.read_until(kPrompt);
    chat.type("/set top_k 12\r");
    chat.read_until(kPrompt);
    chat.type("/quit\r");
    EXPECT_EQ(chat.wait(), 0);
  }
  TerminalProcess chat(arguments(), environment());
  chat.read_until(kPrompt);
  chat.type("\033[A\033[A");  // up twice: /quit, /set ...
  chat.read_until("/set top_k 12");
  chat.type("\r");
  chat.read_until(kPrompt);
  chat.type("/set\r");
  chat.read_until("top_k                12");
}

TEST_F(ChatTerminal, TwoChatsKeepTheLinesOfBothInOneHistory) {
  TerminalProcess one(arguments(), environment()), two(arguments(), environment());
  const auto say = [](TerminalProcess& chat, const std::string& line) {
    chat.type(line + "\r");
    chat.read_until(kPrompt);
  };
  one.read_until(kPrompt);
  two.read_until(kPrompt);
  say(one, "/set top_k 11");
  say(two, "/set top_k 12");
  say(one, "/set top_k 13");
  say(two, "/set top_k 14");

  std::string lines = model::read_file(state_.path() / "troupe/chat_history");
  size_t last = 0;
  for (const char* number : {"11", "12", "13", "14"}) {
    const size_t place = lines.find(number);
    ASSERT_NE(place, std::string::npos) << number << " is lost: " << lines;
    EXPECT_GT(place, last);
    last = place;
  }
  EXPECT_EQ(std::ranges::count(lines, '\n'), 5) << "four and the file's head: " << lines;
}

TEST_F(ChatTerminal, TabCompletesCommands) {
  TerminalProcess chat(arguments(), environment());
  chat.read_until(kPrompt);
  chat.type("/exp\t\r");
  chat.read_until("nothing was said");
  chat.read_until(kPrompt);
  chat.type("/h\t");
  chat.read_until("/help  /history");
}

TEST_F(ChatTerminal, TellsAMistakeAndGoesOn) {
  TerminalProcess chat(arguments(), environment());
  chat.read_until(kPrompt);
  chat.type("/hsitory\r");
  chat.read_until("did you mean /history?");
  chat.read_until(kPrompt);
  chat.type("/load /no/such.json\r");
  chat.read_until("/no/such.json: cannot be opened");
  chat.read_until(kPrompt);
  chat.type("\004");
  EXPECT_EQ(chat.wait(), 0);
}

TEST_F(ChatTerminal, ARankThatDiesWhileNobodyTypesIsToldAtOnce) {
  TerminalProcess chat(arguments({"--set", "parallel_config.world_size=2"}), environment());
  chat.read_until(kPrompt);
  chat.type("/ranks\r");
  const std::string table = chat.read_until(kPrompt);
  const size_t row = table.find("\n   1 ");
  ASSERT_NE(row, std::string::npos) << table;
  ::kill(std::stoi(table.substr(row + 6)), SIGKILL);
  chat.read_until("rank 1");
  chat.read_until("SIGKILL");
  EXPECT_EQ(chat.wait(), 3);
}

}  // namespace
}  // namespace troupe::system_tests
