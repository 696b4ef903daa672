#include "launcher/serve_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace troupe::launcher {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

TEST(PoissonArrivals, ComeAtTheirRateWithTheirLengths) {
  const auto arrivals = poisson_arrivals(
      {.requests = 4000, .rate = 50, .input_tokens = 100, .output_tokens = 20, .seed = 3});

  ASSERT_EQ(arrivals.size(), 4000);
  double before = 0, squares = 0, input = 0;
  for (const Arrival& a : arrivals) {
    ASSERT_GE(a.at_s, before);
    squares += (a.at_s - before) * (a.at_s - before);
    before = a.at_s;
    input += a.input_tokens;
    EXPECT_TRUE(a.input_tokens >= 50 && a.input_tokens <= 150) << a.input_tokens;
    EXPECT_TRUE(a.output_tokens >= 10 && a.output_tokens <= 30) << a.output_tokens;
  }
  EXPECT_NEAR(before, 80, 4);                        // 4000 gaps of mean 1/50, three sigma
  EXPECT_NEAR(squares / 4000, 2.0 / 2500, 0.00015);  // exponential: twice the square of the mean
  EXPECT_NEAR(input / 4000, 100, 2);
  EXPECT_EQ(poisson_arrivals({.requests = 3, .input_tokens = 8, .output_tokens = 8})[2].at_s, 0);
}

TEST(ReadArrivals, TakesLinesInOrderOfArrivalAndNamesAWrongOne) {
  const fs::path file = fs::path(testing::TempDir()) / "arrivals.csv";
  std::ofstream(file) << "# at, in, out\n1.5,8,4\n\n0.25, 3, 2\n";
  EXPECT_EQ(read_arrivals(file), (std::vector<Arrival>{{0.25, 3, 2}, {1.5, 8, 4}}));

  for (const char* line : {"1,2", "x,1,1", "1,0,1", "-1,1,1", "1,2,3,4", "nan,1,1", "1,2,3 x"}) {
    std::ofstream(file) << "1,1,1\n" << line << "\n";
    try {
      read_arrivals(file);
      FAIL() << line;
    } catch (const UserError& error) {
      EXPECT_THAT(error.what(), HasSubstr("arrivals.csv:2: expected arrival_s"));
    }
  }
}

TEST(Percentile, IsTheNearestRank) {
  EXPECT_EQ(percentile({}, 0.5), 0);
  EXPECT_EQ(percentile({7.0}, 0.99), 7);
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0.5), 2);
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0.9), 4);
}

TEST(Replay, RunsEveryRequestToItsLengthAndSaysWhatItsUsersFelt) {
  Config config;
  config.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
  config.parallel.world_size = 2;
  config.scheduler.batch_size = 4;
  config.runtime.comm_buffer_mb = 2;
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const std::vector<Arrival> arrivals{{0, 5, 3},    {0, 9, 8},    {0.02, 4, 1},
                                      {0.05, 6, 2}, {0.05, 6, 2}, {0.05, 7, 5}};
  Session session(config, model, load_of(arrivals), 0,
                  {.on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {}});

  const Replay result = replay(session, arrivals, model.vocab_size);

  EXPECT_EQ(result.input_tokens, 37);
  EXPECT_EQ(result.output_tokens, 21);
  EXPECT_EQ(result.ttft_s.size(), 6);
  EXPECT_EQ(result.tpot_s.size(), 5);  // of the one with a single token there is none
  for (size_t i = 0; i < 6; ++i) EXPECT_GE(result.ttft_s[i], result.queue_s[i]);
  EXPECT_GE(result.seconds, 0.05);
  EXPECT_EQ(result.samples.back().running, 0);
  EXPECT_EQ(result.samples.back().kv_use, 0);
  const auto json = replay_json(result);
  EXPECT_LE(json.at("ttft_ms").at("p50").get<double>(), json.at("ttft_ms").at("p99").get<double>());
  EXPECT_GT(json.at("kv_use_peak").get<double>(), 0);
  EXPECT_EQ(json.at("timeline").at("rows").size(), result.samples.size());
  EXPECT_THAT(replay_table(result), HasSubstr("6 requests, 37 tokens in, 21 out"));
  EXPECT_THAT(replay_svg(result), testing::StartsWith("<svg "));
}

}  // namespace
}  // namespace troupe::launcher
