// What `troupe run --json` and `troupe score --json` report, against what can be told from outside.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <span>

#include "tests/model/page_cache.h"
#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

namespace fs = std::filesystem;

constexpr int kNextN = 2;
constexpr int kMaxNewTokens = 200;
constexpr int kEos = 1;

const std::vector<std::string>& texts() {
  static const std::vector<std::string> all{
      "Once upon a time, there was a little girl named Lily. She", "Tom and his dog",
      "The little bird was sad because", "Mom said, \"It is time to go home.\"",
      "One day, a boy named Tim found"};
  return all;
}

// A run of more prompts than batch_size on 4 ranks, with drafts.
struct TextRun {
  Ended ended;
  json report;
};

TextRun run_texts() {
  const model::TemporaryDirectory directory;
  json config = configuration(tiny_moe(), 4, "float32");
  config["model_config"]["next_n"] = kNextN;
  config["scheduler_config"] = {{"batch_size", 2}, {"max_new_tokens", kMaxNewTokens}};
  const std::string path = directory.path() / "report.json";
  auto words = command_line("run", config, {}, directory);
  words.insert(words.end(), {"--json", path});
  for (const std::string& text : texts()) words.insert(words.end(), {"--prompt", text});
  const Ended ended = run_troupe(words);
  if (ended.status != 0) throw std::runtime_error(ended.err);
  return {ended, json::parse(model::read_file(path))};
}

// What `troupe tokenize` makes of a text or of ids.
json tokenize(const std::string& option, const std::string& value) {
  const Ended ended = run_troupe({"tokenize", "--tokenizer", tiny_moe(), option, value});
  if (ended.status != 0) throw std::runtime_error(ended.err);
  return json::parse(ended.out);
}

TEST(Report, HasOneOutputPerPromptInTheOrderGiven) {
  const TextRun run = run_texts();
  const json& outputs = run.report.at("outputs");

  ASSERT_EQ(outputs.size(), texts().size());
  std::string printed;
  for (size_t i = 0; i < texts().size(); ++i) {
    EXPECT_EQ(outputs[i].at("prompt"), texts()[i]);
    EXPECT_EQ(outputs[i].at("prompt_ids"), tokenize("--text", texts()[i]));
    Ids said = outputs[i].at("output_ids");
    if (outputs[i].at("finish_reason") == "stop") said.pop_back();  // no text
    EXPECT_EQ(outputs[i].at("text"), tokenize("--ids", joined(said)));
    if (i > 0) printed += "\n";  // an empty line between answers
    printed += outputs[i].at("text").get<std::string>() + "\n";
  }
  EXPECT_EQ(run.ended.out, printed);
}

TEST(Report, OfAChatHasTheTemplatesWordsAroundThePrompt) {
  const model::TemporaryDirectory directory;
  const std::string path = directory.path() / "report.json";
  auto words = command_line("run", configuration(tiny_moe(), 1, "float32"), {}, directory);
  words.insert(words.end(), {"--prompt", "Hello", "--prompt-ids", "7,8", "--json", path, "--chat"});
  ASSERT_EQ(run_troupe(words).status, 0);
  const json outputs = json::parse(model::read_file(path)).at("outputs");

  EXPECT_EQ(outputs[0].at("prompt"), "Hello");
  EXPECT_EQ(outputs[0].at("prompt_ids"),
            tokenize("--text", "<｜User｜>Hello<｜Assistant｜>"));  // BOS by the tokenizer's rule
  EXPECT_EQ(outputs[1].at("prompt_ids"), (Ids{7, 8}));

  const std::string own = directory.write("own.jinja", "{{ messages[0]['content'] }}!");
  words.insert(words.end(), {"--chat-template", own});
  ASSERT_EQ(run_troupe(words).status, 0);
  EXPECT_EQ(json::parse(model::read_file(path)).at("outputs")[0].at("prompt_ids").size(),
            tokenize("--text", "Hello!").size() - 1);  // and here no BOS
}

TEST(Report, SaysStopAfterTheEndTokenAndLengthAtTheLimit) {
  std::map<std::string, int> reasons;

  const TextRun run = run_texts();
  for (const json& output : run.report.at("outputs")) {
    const Ids ids = output.at("output_ids");
    const std::string reason = output.at("finish_reason");
    ++reasons[reason];
    ASSERT_FALSE(ids.empty());
    EXPECT_EQ(reason == "stop", ids.back() == kEos);
    EXPECT_EQ(std::ranges::count(ids, kEos), reason == "stop" ? 1 : 0);
    EXPECT_EQ(reason == "length", ids.size() == kMaxNewTokens && ids.back() != kEos);
  }

  EXPECT_GT(reasons["stop"], 0);
  EXPECT_GT(reasons["length"], 0);
}

TEST(Report, CountsDraftsOfEveryVerificationStep) {
  const TextRun run = run_texts();
  int64_t drafted = 0, accepted = 0;
  for (const json& output : run.report.at("outputs")) {
    const json& mtp = output.at("mtp");
    drafted += mtp.at("drafted").get<int64_t>();
    accepted += mtp.at("accepted").get<int64_t>();
    // A step gives one token and those accepted; the last one's may be more than are kept.
    const int64_t steps = mtp.at("drafted").get<int64_t>() / kNextN;
    const auto tokens = static_cast<int64_t>(output.at("output_ids").size());
    const int64_t given = 1 + steps + mtp.at("accepted").get<int64_t>();
    EXPECT_EQ(mtp.at("drafted").get<int64_t>() % kNextN, 0);
    EXPECT_GE(given, tokens);
    EXPECT_LE(given, tokens + kNextN);
  }

  const json& metrics = run.report.at("metrics");
  const double rate = static_cast<double>(accepted) / static_cast<double>(drafted);
  EXPECT_GT(rate, 0.3);
  EXPECT_LT(rate, 1);
  EXPECT_DOUBLE_EQ(metrics.at("avg_accept_rate"), rate);
  EXPECT_DOUBLE_EQ(metrics.at("avg_accept_length"), 1 + rate * kNextN);
}

TEST(Report, HasTimesOfTheRunAndFiguresOfEveryRank) {
  const TextRun run = run_texts();
  const json& metrics = run.report.at("metrics");

  EXPECT_EQ(metrics.at("world_size"), 4);
  EXPECT_EQ(
      (std::set<std::string>{"scalar", "avx2", "avx512", "avx512_bf16"}.count(metrics.at("isa"))),
      1);
  for (const char* time : {"ttft_ms", "tpot_ms", "prefill_tokens_per_s", "decode_tokens_per_s",
                           "avg_equivalent_time_ms", "kv_blocks", "scheduler_share", "load_s"})
    EXPECT_GT(metrics.at(time).get<double>(), 0) << time;
  EXPECT_LT(metrics.at("scheduler_share").get<double>(), 1);
  EXPECT_EQ(metrics.at("preemptions"), 0);
  EXPECT_EQ(metrics.at("prefix_hit_rate"), 0);  // prompts are shorter than a block
  ASSERT_EQ(metrics.at("ranks").size(), 4);
  for (int rank = 0; rank < 4; ++rank) {
    const json& figures = metrics.at("ranks")[rank];
    EXPECT_EQ(figures.at("rank"), rank);
    EXPECT_GT(figures.at("pss_mb").get<double>(), 0);
    EXPECT_GT(figures.at("rss_mb").get<double>(), figures.at("pss_mb").get<double>());
    EXPECT_GT(figures.at("bytes_sent").get<int64_t>(), 0);
    EXPECT_GE(figures.at("wait_ms").get<double>(), 0);
    EXPECT_GT(figures.at("messages").get<int64_t>(), 0);
    EXPECT_EQ(figures.at("graphs_recorded"), 0);
    EXPECT_EQ(figures.at("graphs_replayed"), 0);
  }
}

TEST(Report, CountsRecordedAndReplayedStepsAndTheMessagesTheyDoWithout) {
  const auto rank_of = [](const std::string& exe_mode) {
    json config = configuration(tiny_moe(), 1, "bfloat16");
    config["model_config"]["exe_mode"] = exe_mode;
    config["scheduler_config"]["max_new_tokens"] = 9;
    return generate(config, {{0, 5, 9}})["metrics"]["ranks"][0];
  };

  const json eager = rank_of("eager"), graph = rank_of("ge_graph");

  // A prefill step and 8 of decoding; 13 messages each for 6 layers.
  EXPECT_EQ(eager["messages"], 9 * 13);
  EXPECT_EQ(graph["messages"], 2 * 13);
  EXPECT_EQ(graph["graphs_recorded"], 1);
  EXPECT_EQ(graph["graphs_replayed"], 7);
}

// Of what several ranks hold alike there is one copy: a further rank costs far less than the 18 MB
// of the weights. (Differences, since pages of the program count less while other tests run it.)
TEST(Report, EightRanksTakeLittleMoreMemoryThanOne) {
  const auto memory = [](int world_size) {
    double mb = 0;
    const json metrics =
        generate(configuration(tiny_moe(), world_size, "bfloat16"), {{0, 427}}).at("metrics");
    for (const json& rank : metrics.at("ranks")) mb += rank.at("pss_mb").get<double>();
    return mb;
  };
  EXPECT_LT((memory(8) - memory(1)) / 7, 18.0 / 4);
}

// Nor does the kernel keep the checkpoint beside the packed weights.
TEST(Report, ALaunchLeavesNoSecondCopyInThePageCache) {
  const model::TemporaryDirectory directory;
  const auto copy = directory.path() / "model";
  std::filesystem::copy(tiny_moe(), copy, std::filesystem::copy_options::recursive);
  if (!model::has_page_cache(copy)) GTEST_SKIP() << "a tmpfs is nowhere but in memory";
  ::sync();  // only pages that are on disk can be forgotten
  ASSERT_GT(model::num_cached_pages(copy / "model-00001-of-00002.safetensors"), 1000u);

  generate(configuration(copy, 4, "bfloat16"), {{0, 427}});

  EXPECT_LT(model::num_cached_pages(copy / "model-00001-of-00002.safetensors"), 50u);
}

TEST(Report, WithoutDraftsHasAnAcceptLengthOfOne) {
  const json metrics = generate(configuration(tiny_moe(), 1, "bfloat16"), {{0, 427}}).at("metrics");

  EXPECT_EQ(metrics.at("avg_accept_rate"), 0);
  EXPECT_EQ(metrics.at("avg_accept_length"), 1);
  EXPECT_GT(metrics.at("avg_equivalent_time_ms").get<double>(), 0);
}

TEST(Report, EndsTextsAtTheModelsLastPosition) {
  const model::TemporaryDirectory copy;
  fs::copy(tiny_moe(), copy.path());
  json model_config = json::parse(model::read_file(tiny_moe() / "config.json"));
  model_config["max_position_embeddings"] = 32;
  copy.write("config.json", model_config.dump());
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  const Ids prompt = golden["cases"][0]["prompt_ids"];
  Ids expected = golden["cases"][0]["continuation_ids"];
  expected.resize(32 - prompt.size());

  for (const int next_n : {0, 3}) {
    SCOPED_TRACE(fmt::format("next_n {}", next_n));
    json config = configuration(copy.path(), 2, "float32");
    config["model_config"]["next_n"] = next_n;
    config["scheduler_config"]["max_new_tokens"] = 1000;

    const json report = generate(config, {prompt, Ids(32, 7)});

    EXPECT_EQ(output_ids(report), (std::vector<Ids>{expected, {}}));
    for (const json& output : report.at("outputs")) EXPECT_EQ(output.at("finish_reason"), "length");
  }
}

// log softmax(row)[token]
double log_probability(std::span<const float> row, int32_t token) {
  const double largest = *std::ranges::max_element(row);
  double sum = 0;
  for (const float logit : row) sum += std::exp(logit - largest);
  return row[static_cast<size_t>(token)] - largest - std::log(sum);
}

TEST(ScoreReport, HasTheLogProbabilitiesOfTheDumpedLogits) {
  const std::vector<Ids> inputs{{0, 427, 439, 261, 400, 14}, {3000, 5}};
  const model::TemporaryDirectory directory;
  const fs::path report_path = directory.path() / "report.json", dump = directory.path() / "dump";
  auto words = command_line("score", configuration(tiny_moe(), 2, "float32"), inputs, directory);
  words.insert(words.end(), {"--json", report_path, "--dump", dump});

  ASSERT_EQ(run_troupe(words).status, 0);

  const json report = json::parse(model::read_file(report_path));
  const model::SafetensorsFile tensors(dump);
  double total = 0;
  int count = 0;
  ASSERT_EQ(report.at("inputs").size(), inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const json& input = report["inputs"][i];
    const model::Tensor& tensor = tensors.tensors().at(fmt::format("logits.{}", i));
    const auto logits = values<float>(tensor);
    const auto vocab = static_cast<size_t>(tensor.shape[1]);
    EXPECT_EQ(input.at("prompt_ids"), inputs[i]);
    ASSERT_EQ(input.at("log_probs").size(), inputs[i].size() - 1);
    double sum = 0;
    for (size_t t = 0; t + 1 < inputs[i].size(); ++t, ++count) {
      const double expected =
          log_probability(std::span(logits).subspan(t * vocab, vocab), inputs[i][t + 1]);
      EXPECT_NEAR(input["log_probs"][t], expected, 1e-5);
      sum += expected;
    }
    EXPECT_NEAR(input.at("sum_log_prob"), sum, 1e-4);
    total += sum;
  }
  EXPECT_NEAR(report.at("perplexity"), std::exp(-total / count), 1e-3 * std::exp(-total / count));
}

TEST(Report, OfABenchHoldsItsRateAgainstTheMachinesLimit) {
  for (const std::string phase : {"decode", "prefill"}) {
    SCOPED_TRACE(phase);
    const model::TemporaryDirectory directory;
    const std::string path = directory.path() / "bench.json";
    auto words = command_line(phase, configuration(tiny_moe(), 2, "bfloat16"), {}, directory);
    words.insert(std::ranges::find(words, phase), "bench");
    words.insert(words.end(), {"--tokens", "3", "--repeat", "4", "--json", path});

    const Ended ended = run_troupe(words);

    ASSERT_EQ(ended.status, 0) << ended.err;
    const json report = json::parse(model::read_file(path));
    const json& rate = report.at("tokens_per_s");
    const json& limit = report.at("limit");
    EXPECT_GT(rate.at("min"), 0);
    EXPECT_LE(rate.at("min"), rate.at("p50"));
    EXPECT_LE(rate.at("p50"), rate.at("max"));
    EXPECT_DOUBLE_EQ(limit.at("fraction"),
                     rate.at("p50").get<double>() / limit.at("tokens_per_s").get<double>());
    // Of 5 layers with 16 experts of 3 * 64 * 256 one-byte weights, a token alone meets 4.
    if (phase == "decode") {
      EXPECT_GT(limit.at("weight_mb_per_token"), 5 * 4 * 3 * 64 * 256 * 1e-6);
    }
  }
}

}  // namespace
}  // namespace troupe::system_tests
