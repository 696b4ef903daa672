#include "actors/rank_actors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "rank_threads.h"

namespace troupe::actors {
namespace {

using testing::Each;

model::ParallelSizes ranks(int world_size) { return {.world_size = world_size}; }

// Token ids of tiny-moe's own training texts, and arbitrary ones.
Request request(int prompt_tokens, int max_new_tokens) {
  Request r;
  r.prompt = {0};
  for (int i = 1; i < prompt_tokens; ++i) r.prompt.push_back((i * 379 + prompt_tokens * 17) % 4096);
  r.max_new_tokens = max_new_tokens;
  return r;
}

// Of different lengths, so that ranks hold different numbers of rows; greedy, sampled, scored.
std::vector<Request> mixed_requests() {
  std::vector<Request> requests = {request(3, 12), request(37, 9), request(1, 10),
                                   request(18, 5), request(9, 0),  request(5, 7)};
  requests[1].temperature = 0.8f;
  requests[1].top_p = 0.9f;
  requests[1].seed = 5;
  requests[2].temperature = 1;
  requests[2].top_k = 20;
  requests[3].top_log_probs = 3;
  requests[4].observe = static_cast<uint8_t>(msg::Observe::LogProbs);
  return requests;
}

void expect_same(const LaunchOutcome& got, const LaunchOutcome& wanted) {
  ASSERT_EQ(got.completions.size(), wanted.completions.size());
  for (size_t i = 0; i < got.completions.size(); ++i) {
    EXPECT_EQ(got.completions[i].tokens, wanted.completions[i].tokens) << "request " << i;
    EXPECT_EQ(got.completions[i].log_probs, wanted.completions[i].log_probs) << "request " << i;
    const auto &found = got.completions[i].token_log_probs,
               &expected = wanted.completions[i].token_log_probs;
    ASSERT_EQ(found.size(), expected.size()) << "request " << i;
    for (size_t t = 0; t < found.size(); ++t) {
      EXPECT_EQ(found[t].chosen, expected[t].chosen) << "request " << i;
      EXPECT_EQ(found[t].top, expected[t].top) << "request " << i;
    }
  }
}

const LaunchOutcome& one_rank() {
  static const LaunchOutcome outcome = launch({.sizes = ranks(1)}, mixed_requests());
  return outcome;
}

TEST(RankActors, AnyNumberOfRanksYieldsTheTokensOfOne) {
  ASSERT_EQ(one_rank().completions[0].tokens.size(), 12);
  ASSERT_EQ(one_rank().completions[4].log_probs.size(), 8);

  for (const int world_size : {2, 4}) {
    SCOPED_TRACE(fmt::format("{} ranks", world_size));
    expect_same(launch({.sizes = ranks(world_size)}, mixed_requests()), one_rank());
  }
}

TEST(RankActors, DraftsChangeNoToken) {
  for (const int world_size : {1, 2, 4}) {
    SCOPED_TRACE(fmt::format("{} ranks", world_size));
    const LaunchOutcome outcome =
        launch({.sizes = ranks(world_size), .num_drafts = 2}, mixed_requests());
    expect_same(outcome, one_rank());
    EXPECT_GT(outcome.completions[0].drafted, 0);
  }
}

TEST(RankActors, ARankWithoutSequencesServesItsExperts) {
  expect_same(launch({.sizes = ranks(4), .num_drafts = 1, .batch_size = 1}, mixed_requests()),
              one_rank());
}

TEST(RankActors, ChunksOfPromptsAndOfDispatchesChangeNoToken) {
  expect_same(launch({.sizes = ranks(2),
                      .num_drafts = 1,
                      .batch_size = 6,
                      .max_prefill_tokens = 5,
                      .moe_chunk_max_len = 3},
                     mixed_requests()),
              one_rank());
}

TEST(RankActors, ThreadsPerRankChangeNoToken) {
  for (const int world_size : {1, 2})
    expect_same(launch({.sizes = ranks(world_size), .num_drafts = 1, .threads_per_rank = 3},
                       mixed_requests()),
                one_rank());
}

TEST(RankActors, DoubleRoutingChangesNoToken) {
  for (const model::ParallelSizes& sizes :
       {ranks(1), ranks(4), model::ParallelSizes{.world_size = 4, .moe_tp_size = 2}}) {
    SCOPED_TRACE(fmt::format("{} ranks, moe_tp {}", sizes.world_size, sizes.moe_tp_size));
    expect_same(launch({.sizes = sizes, .moe_chunk_max_len = 5, .moe_double_routing = true},
                       mixed_requests()),
                one_rank());
  }
}

TEST(RankActors, CommThreadsChangeNoToken) {
  for (const bool double_routing : {false, true}) {
    SCOPED_TRACE(double_routing ? "double routing" : "fused");
    expect_same(launch({.sizes = ranks(4),
                        .num_drafts = 1,
                        .moe_chunk_max_len = 5,
                        .moe_double_routing = double_routing,
                        .comm_thread = true},
                       mixed_requests()),
                one_rank());
  }
}

TEST(RankActors, Int8PayloadsAreTheSameOnAnyLayout) {
  const LaunchOutcome alone =
      launch({.sizes = ranks(1), .moe_int8_payload = true}, mixed_requests());
  EXPECT_NE(alone.completions[4].log_probs, one_rank().completions[4].log_probs);
  for (const model::ParallelSizes& sizes :
       {ranks(4), model::ParallelSizes{.world_size = 4, .moe_tp_size = 2}})
    expect_same(launch({.sizes = sizes, .moe_int8_payload = true}, mixed_requests()), alone);
}

// Sums in another order: the same up to rounding, which float32 leaves small.
TEST(RankActors, SumsPerRankAreNearThoseInExpertOrder) {
  Request scored = request(29, 0);
  scored.observe = static_cast<uint8_t>(msg::Observe::LogProbs);
  const auto log_probs = [&](const model::ParallelSizes& sizes, bool deterministic) {
    return launch({.sizes = sizes, .dtype = msg::DataType::Float32, .deterministic = deterministic},
                  {scored})
        .completions[0]
        .log_probs;
  };
  const auto exact = log_probs(ranks(1), true);
  for (const model::ParallelSizes& sizes :
       {ranks(1), ranks(4), model::ParallelSizes{.world_size = 4, .moe_tp_size = 2}}) {
    const auto sums = log_probs(sizes, false);
    ASSERT_EQ(sums.size(), exact.size());
    for (size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(sums[i], exact[i], 1e-4) << i;
    EXPECT_EQ(sums == exact, sizes.world_size == 1);
  }
}

TEST(RankActors, TensorParallelSizesChangeNoToken) {
  const std::vector<model::ParallelSizes> layouts = {
      {.world_size = 2, .attn_tp_size = 2, .moe_tp_size = 2, .lmhead_tp_size = 2},
      {.world_size = 4, .attn_tp_size = 2, .dense_tp_size = 4, .embed_tp_size = 2},
      {.world_size = 4, .moe_tp_size = 2, .o_proj_tp_size = 4, .shared_tp_size = 2},
      {.world_size = 4, .attn_tp_size = 4, .o_proj_tp_size = 4, .enable_o_proj_alltoall = true}};
  for (const model::ParallelSizes& sizes : layouts) {
    SCOPED_TRACE(fmt::format("{} ranks, attn_tp {}, moe_tp {}", sizes.world_size,
                             sizes.attn_tp_size, sizes.moe_tp_size));
    expect_same(launch({.sizes = sizes, .num_drafts = 1}, mixed_requests()), one_rank());
  }
}

constexpr ExecutionOptions kGraph{.graph = true};
constexpr ExecutionOptions kSuperkernel{.graph = true, .superkernel = true};

TEST(RankActors, DecodeStepsAllocateNothing) {
  for (const ExecutionOptions& execution : {ExecutionOptions{}, kGraph, kSuperkernel})
    for (const int world_size : {1, 2})
      EXPECT_THAT(launch({.sizes = ranks(world_size),
                          .num_drafts = 1,
                          .threads_per_rank = 2,
                          .execution = execution},
                         {request(7, 24)})
                      .decode_allocations,
                  Each(0))
          << world_size << " ranks, graph " << execution.graph;
}

TEST(RankActors, RecordedStepsChangeNoToken) {
  const std::vector<model::ParallelSizes> layouts = {ranks(1),
                                                     ranks(4),
                                                     {.world_size = 4,
                                                      .attn_tp_size = 2,
                                                      .dense_tp_size = 4,
                                                      .moe_tp_size = 2,
                                                      .shared_tp_size = 2}};
  for (const model::ParallelSizes& sizes : layouts)
    for (const ExecutionOptions& execution : {kGraph, kSuperkernel})
      for (const int num_drafts : {0, 2}) {
        SCOPED_TRACE(fmt::format("{} ranks, attn_tp {}, superkernel {}, {} drafts",
                                 sizes.world_size, sizes.attn_tp_size, execution.superkernel,
                                 num_drafts));
        const LaunchOutcome outcome = launch({.sizes = sizes,
                                              .num_drafts = num_drafts,
                                              .threads_per_rank = 2,
                                              .execution = execution},
                                             mixed_requests());
        expect_same(outcome, one_rank());
        for (const LaunchOutcome::Steps& steps : outcome.steps) EXPECT_GT(steps.graphs.replayed, 0);
      }
}

TEST(RankActors, ASharedExpertBeforeTheDispatchChangesNoToken) {
  expect_same(launch({.sizes = ranks(2), .execution = {.multi_streams = false}}, mixed_requests()),
              one_rank());
}

// One request: its decode steps have one shape, on the rank that has it and on the other.
TEST(RankActors, AReplayedStepSendsNoMessage) {
  const std::vector<Request> requests = {request(7, 24)};
  const auto eager = launch({.sizes = ranks(2)}, requests).steps;
  const auto graph = launch({.sizes = ranks(2), .execution = kGraph}, requests).steps;
  for (int rank = 0; rank < 2; ++rank) {
    SCOPED_TRACE(fmt::format("rank {}", rank));
    ASSERT_EQ(eager[rank].decode, 23);  // the first token is the prompt's
    EXPECT_EQ(eager[rank].graphs.recorded, 0);
    EXPECT_EQ(eager[rank].messages, 23 * (2 * 6 + 1));  // of 6 layers, and LayersDone

    EXPECT_EQ(graph[rank].graphs.recorded, 1);
    EXPECT_EQ(graph[rank].graphs.replayed, 22);
    EXPECT_EQ(graph[rank].replayed, 22);
    EXPECT_EQ(graph[rank].messages_of_replays, 0);
    EXPECT_EQ(graph[rank].messages, 2 * 6 + 1);
  }
}

TEST(RankActors, AReplayedStepWithDraftsSendsOneMessageForEachPassOfTheMtpLayer) {
  const LaunchOutcome::Steps steps =
      launch({.sizes = ranks(1), .num_drafts = 2, .execution = kGraph}, {request(7, 24)}).steps[0];

  ASSERT_GT(steps.replayed, 0);
  EXPECT_GT(steps.messages_of_replays, 0);
  EXPECT_LE(steps.messages_of_replays, 2 * steps.replayed);
}

// golden.json holds the continuation that a float32 reference makes, and what its MTP layer drafts.
TEST(RankActors, TokensAndDraftsAreThoseOfTheReference) {
  std::ifstream file(TROUPE_SOURCE_DIR "/models/tiny-moe/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(file)["cases"][0];
  Request r;
  r.prompt = golden["prompt_ids"].get<std::vector<int32_t>>();
  const auto continuation = golden["continuation_ids"].get<std::vector<int32_t>>();
  r.max_new_tokens = static_cast<int>(continuation.size());
  const auto accepted = golden["mtp_2"]["accepted"].get<std::vector<int>>();

  for (const ExecutionOptions& execution : {ExecutionOptions{}, kGraph, kSuperkernel}) {
    SCOPED_TRACE(fmt::format("graph {}", execution.graph));
    const Completion completion = launch({.sizes = ranks(2),
                                          .dtype = msg::DataType::Float32,
                                          .num_drafts = 2,
                                          .execution = execution},
                                         {r})
                                      .completions[0];

    EXPECT_EQ(completion.tokens, continuation);
    EXPECT_EQ(completion.verify_steps, std::ssize(accepted));
    EXPECT_EQ(completion.accepted, std::accumulate(accepted.begin(), accepted.end(), 0));
  }
}

}  // namespace
}  // namespace troupe::actors
