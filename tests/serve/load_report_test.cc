#include "serve/load_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace troupe::serve {
namespace {

// 10 tokens: the first after `ttft_s`, the others 10 ms apart.
RequestTimes request(double ttft_s) {
  return {.ttft_s = ttft_s,
          .end_s = ttft_s + 0.09,
          .gaps_s = std::vector<double>(9, 0.01),
          .input_tokens = 20,
          .output_tokens = 10,
          .error = ""};
}

TEST(LoadReport, HasTheFiguresOfVllmUnderItsNames) {
  RequestTimes failed;
  failed.error = "status 429";
  const LoadResult load{
      .model = "m", .requests = {request(0.1), request(0.2), failed, request(0.3)}, .seconds = 2};
  const auto json = load_json(load, 0, 4, {.ttft_ms = 250, .tpot_ms = 11, .e2el_ms = 0});

  EXPECT_EQ(json["completed"], 3);
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["errors"][0], "status 429");
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["total_input_tokens"], 60);
  EXPECT_EQ(json["output_throughput"], 15);
  EXPECT_EQ(json["total_token_throughput"], 45);
  EXPECT_EQ(json["request_throughput"], 1.5);
  EXPECT_EQ(json["request_goodput"], 1);
  EXPECT_NEAR(json["mean_ttft_ms"], 200, 1e-9);
  EXPECT_NEAR(json["median_ttft_ms"], 200, 1e-9);
  EXPECT_NEAR(json["p99_ttft_ms"], 300, 1e-9);
  EXPECT_NEAR(json["std_ttft_ms"], 81.6497, 1e-3);
  EXPECT_NEAR(json["mean_tpot_ms"], 10, 1e-9);
  EXPECT_NEAR(json["p99_itl_ms"], 10, 1e-9);
  EXPECT_NEAR(json["median_e2el_ms"], 290, 1e-9);
}

TEST(LoadReport, ReadsWhatGoodputMeans) {
  const ServiceLevel level = parse_goodput({"ttft:200", "e2el:1500.5"});
  EXPECT_EQ(level.ttft_ms, 200);
  EXPECT_EQ(level.tpot_ms, 0);
  EXPECT_EQ(level.e2el_ms, 1500.5);
  for (const char* wrong : {"ttft", "ttft:", "ttft:x", "ttft:-1", "itl:5", "ttft:5ms", ""})
    EXPECT_THROW(parse_goodput({wrong}), UserError) << wrong;
}

TEST(LoadReport, AUrlIsAHostAndAPort) {
  EXPECT_EQ(parse_url("http://localhost:8000/").host, "localhost");
  EXPECT_EQ(parse_url("http://localhost:8000").port, "8000");
  EXPECT_EQ(parse_url("http://10.0.0.1").port, "80");
  for (const char* wrong :
       {"", "localhost:8000", "https://a:1", "http://", "http://a:x", "http://a:1/v1", "http://:1"})
    EXPECT_THROW(parse_url(wrong), UserError) << wrong;
}

}  // namespace
}  // namespace troupe::serve
