// `troupe chat` in a pipe: lines in, answers out.
#include <gtest/gtest.h>

#include <set>

#include "tests/system/golden.h"
#include "tests/system/jobs.h"
#include "tests/system/troupe_process.h"

namespace troupe::system_tests {
namespace {

using Words = std::vector<std::string>;

Ended chat(const std::string& input, const Words& more = {}) {
  return run_troupe(tiny_moe_words("chat", 12, more), {}, input);
}

// What `troupe run` makes of the same prompt: an implementation of its own.
std::string run(const Words& more) {
  const Ended ended = run_troupe(tiny_moe_words("run", 12, more));
  EXPECT_EQ(ended.status, 0) << ended.err;
  return ended.out;
}

TEST(Chat, AnswersEachLineWithTheWholeConversationBeforeIt) {
  const Ended ended = chat("Hello.\nAnd then?\n");
  const std::string first = run({"--chat", "--prompt", "Hello."});
  const std::string second =
      run({"--prompt", "<｜User｜>Hello.<｜Assistant｜>" + first.substr(0, first.size() - 1) +
                           "<｜end▁of▁sentence｜><｜User｜>And then?<｜Assistant｜>"});

  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out, first + second);
  EXPECT_EQ(ended.err, "");
}

TEST(Chat, ContinuesPlainTextWhereItStopped) {
  const Ended ended = chat("Once upon a time\n\n", {"--raw"});

  EXPECT_EQ(ended.status, 0) << ended.err;
  std::string text = ended.out;
  std::erase(text, '\n');
  std::string whole =
      run({"--prompt", "Once upon a time", "--set", "scheduler_config.max_new_tokens=24"});
  std::erase(whole, '\n');
  EXPECT_EQ(text, whole);
}

TEST(Chat, JoinsLinesThatEndWithABackslashAndTakesTheLastOneWithoutNewline) {
  const Ended ended = chat("/set max_new_tokens 1\none\\\ntwo\n//three\n/history");

  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_CONTAINS(ended.err, "user: one\ntwo\nassistant: ");
  EXPECT_CONTAINS(ended.err, "user: /three\n");
}

TEST(Chat, RegeneratesWithOtherNumbersAndTheSameOnesAgainAfterLoading) {
  const model::TemporaryDirectory directory;
  const std::string file = directory.path() / "chat.json";
  const std::string setup = "/set temperature 2\n/seed 5\n/set max_new_tokens 12\n";
  const Ended made = chat(setup + "Hello.\n/regen\n/regen\n/save " + file + "\n");
  const Ended again = chat("/load " + file + "\n/regen\n/reset\nHello.\n");

  EXPECT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(again.status, 0) << again.err;
  const auto lines = [](const std::string& text) {
    std::vector<std::string> result;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) result.push_back(line);
    return result;
  };
  const Words answers = lines(made.out), loaded = lines(again.out);
  ASSERT_EQ(answers.size(), 3);
  ASSERT_EQ(loaded.size(), 2);
  EXPECT_NE(answers[0], answers[1]);
  EXPECT_NE(answers[1], answers[2]);
  EXPECT_EQ(loaded[0], answers[1]);  // the first /regen after a start
  EXPECT_EQ(loaded[1], answers[0]);
}

TEST(Chat, TellsTheModelWhatSystemSays) {
  const Ended ended = chat("/system Talk of cats.\nHello.\n");

  EXPECT_EQ(ended.out, run({"--prompt", "Talk of cats.<｜User｜>Hello.<｜Assistant｜>"}));
}

TEST(Chat, ReadsFilesAndCountsExperts) {
  const model::TemporaryDirectory directory;
  const std::string file = directory.write("text.txt", "Hello.");
  const Ended ended = chat("/read " + file + "\n/experts\n");

  EXPECT_EQ(ended.out, run({"--chat", "--prompt", "Hello."}));
  EXPECT_CONTAINS(ended.err, "layer   1 |");
}

TEST(Chat, TakesTheNextTurnsBeginningFromThePrefixCache) {
  std::string words;
  for (int i = 0; i < 40; ++i) words += "once upon a time ";
  const Ended ended = chat("/set max_new_tokens 1\n" + words + "\nGo on.\n/stats\n");

  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_CONTAINS(ended.err, "(128 from the prefix cache)");
}

TEST(Chat, EndsAtAWrongLineOfAPipeAndNamesIt) {
  const Ended ended = chat("Hello.\n/sett top_k 3\nHello.\n");

  EXPECT_EQ(ended.status, 2);
  EXPECT_CONTAINS(ended.err, "troupe: stdin:2: unknown command /sett; did you mean /set?");
  EXPECT_EQ(ended.out, run({"--chat", "--prompt", "Hello."}));
}

TEST(Chat, SaysWhenTheConversationIsLongerThanTheContext) {
  std::string words;
  for (int i = 0; i < 1000; ++i) words += "once upon a time ";
  const Ended ended = chat(words + "\n");

  EXPECT_EQ(ended.status, 2);
  EXPECT_CONTAINS(ended.err, "the context ends at 2048");
  EXPECT_CONTAINS(ended.err, "/reset");
}

TEST(Chat, TracesWhatIsSaidBetweenOnAndOff) {
  const model::TemporaryDirectory directory;
  const std::string first = directory.path() / "first", second = directory.path() / "second";
  const Ended ended = chat("Hello.\n/trace on " + first + "\nHello.\n/trace\n/trace off\nHello.\n" +
                           "/trace on " + second + "\n/raw\nOnce\n");

  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_CONTAINS(ended.err, "the trace is on\n");
  EXPECT_CONTAINS(ended.err, "in " + first + ": troupe trace summary " + first);
  const auto steps = [](const std::string& path) {
    std::set<int> found;
    const json trace = json::parse(model::read_file(path + "/rank-0.trace.json"));
    for (const json& event : trace.at("traceEvents"))
      if (event.at("name") == "decode") found.insert(event.at("args").at("step").get<int>());
    return found;
  };
  const std::set<int> of_first = steps(first), of_second = steps(second);
  ASSERT_FALSE(of_first.empty());
  ASSERT_FALSE(of_second.empty()) << "written at the end";
  EXPECT_GT(*of_first.begin(), 2) << "the first answer is not in it";
  EXPECT_GT(*of_second.begin(), *of_first.rbegin() + 2) << "nor the third";
  EXPECT_EQ(run_troupe({"--log-level", "error", "trace", "summary", first}).status, 0);
}

TEST(Chat, RefusesATraceThatIsOnAlreadyOrHasNothing) {
  const model::TemporaryDirectory directory;
  const std::string on = "/trace on " + (directory.path() / "trace").string() + "\n";

  EXPECT_CONTAINS(chat("/trace off\n").err, "stdin:1: the trace is off already");
  EXPECT_CONTAINS(chat(on + on).err, "stdin:2: the trace is on already");
  EXPECT_CONTAINS(chat(on + "/trace off\n").err,
                  "stdin:2: nothing was done while the trace was on");
  EXPECT_CONTAINS(chat("/trace onn\n").err, "expected on, on DIR, or off; not \"onn\"");
  EXPECT_CONTAINS(chat("/trace on /dev/null\n").err, "stdin:1: /dev/null");
}

TEST(Chat, OfAModelWithoutTokenizerIsRefused) {
  const Ended ended =
      chat("", {"--set", "model_config.model_path=" + golden_directory("ds3-tiny-bf16").string()});

  EXPECT_EQ(ended.status, 2);
  EXPECT_CONTAINS(ended.err, "tokenizer.json");
}

}  // namespace
}  // namespace troupe::system_tests
