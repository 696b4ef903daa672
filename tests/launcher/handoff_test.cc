// Two launches of one model: the one computes prompts, the other goes on from its KV blocks.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <map>

#include "launcher/session.h"

namespace troupe::launcher {
namespace {

using actors::FinishReason;
using Ids = std::vector<int32_t>;

constexpr int kBlockSize = 16;

struct Layout {
  int world_size, attn_tp_size, moe_tp_size;
};

// A launch and what its requests have got.
class Launch {
 public:
  Launch(Layout layout, int next_n, bool adopts) {
    config_.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
    config_.model.next_n = next_n;
    config_.parallel.world_size = layout.world_size;
    config_.parallel.attn_tp_size = layout.attn_tp_size;
    config_.parallel.moe_tp_size = layout.moe_tp_size;
    config_.scheduler.batch_size = 8;
    config_.scheduler.block_size = kBlockSize;
    config_.runtime.comm_buffer_mb = 2;
    model_ = model::read_model_config(config_.model.model_path);
    session_.emplace(config_, model_,
                     Load{.longest_prompt = 64, .longest_sequence = 128, .adopts = adopts}, 0,
                     SessionCallbacks{.on_tokens = [this](int id, std::span<const int32_t> tokens,
                                                          FinishReason reason) {
                       said[id].insert(said[id].end(), tokens.begin(), tokens.end());
                       reasons[id] = reason;
                     }});
  }
  Session& session() { return *session_; }
  int attn_tp_size() const { return config_.parallel.attn_tp_size; }

  actors::HeldBlocks prefill(const actors::Request& request, int* id) {
    actors::Request first = request;
    first.max_new_tokens = 1;
    first.hold = true;
    *id = session_->submit(first);
    session_->run_until([&] { return session_->held(*id).has_value(); });
    return *session_->held(*id);
  }
  // Another's sections, one of each data-parallel rank, mapped for this one's ranks.
  int64_t map(Launch& other) {
    const layers::KvCacheShape& shape = other.session().kv_shape();
    const int64_t unit = actors::kv_section_alignment(shape);
    const auto up = [&](int64_t blocks) { return (blocks + unit - 1) / unit * unit; };
    const int64_t first = up(session_->kv_shape().num_blocks);
    const size_t section = actors::kv_section_bytes(shape);
    for (int d = 0; d < other.config_.parallel.world_size / other.attn_tp_size(); ++d) {
      const uint64_t offset = d * other.attn_tp_size() * section;
      session_->map_kv({.first_block = first + d * up(shape.num_blocks),
                        .blocks = shape.num_blocks,
                        .offset = [=](int) { return offset; }},
                       Fd(::fcntl(other.session().kv_file(), F_DUPFD_CLOEXEC, 0)));
    }
    return first;
  }
  Ids whole(const actors::Request& request) {
    const int id = session_->submit(request);
    session_->run_until([&] { return reasons[id] != FinishReason::kNone; });
    return said[id];
  }

  std::map<int, Ids> said;
  std::map<int, FinishReason> reasons;

 private:
  Config config_;
  model::ModelConfig model_;
  std::optional<Session> session_;
};

actors::Request request(int length, int seed) {
  actors::Request request;
  for (int i = 0; i < length; ++i) request.prompt.push_back(1 + (seed * 31 + i * 7) % 500);
  request.max_new_tokens = 24;
  if (seed % 2 == 1) {
    request.temperature = 0.9f;
    request.top_p = 0.95f;
    request.seed = static_cast<uint64_t>(seed);
    request.presence_penalty = 0.5f;
  }
  return request;
}

struct HandoffCase {
  Layout prefill, decode;
  int next_n;
  bool pull;
};

class Handoff : public testing::TestWithParam<HandoffCase> {};

TEST_P(Handoff, TokensAreThoseOfOneLaunchAndAllBlocksComeBack) {
  const HandoffCase& c = GetParam();
  Launch prefill(c.prefill, c.next_n, false), decode(c.decode, c.next_n, true);
  const int64_t first = decode.map(prefill);
  const int64_t unit = actors::kv_section_alignment(decode.session().kv_shape());
  const int64_t section = (prefill.session().kv_shape().num_blocks + unit - 1) / unit * unit;

  std::vector<actors::Request> requests;
  for (const int length : {1, 15, 16, 17, 32, 61}) requests.push_back(request(length, length));
  int let_go = 0;
  std::vector<int> ids(requests.size()), held_ids(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    const actors::HeldBlocks held = prefill.prefill(requests[i], &held_ids[i]);
    EXPECT_EQ(held.positions, std::ssize(requests[i].prompt));
    actors::AdoptedBlocks adopted{.blocks = {},
                                  .positions = held.positions,
                                  .first_token = prefill.said[held_ids[i]].at(0),
                                  .drafts = held.drafts,
                                  .pull = c.pull,
                                  .let_go = [&] { ++let_go; }};
    for (const int32_t block : held.blocks)
      adopted.blocks.push_back(static_cast<int32_t>(first + held.dp_rank * section + block));
    actors::Request whole = requests[i];
    whole.adopted = adopted;
    ids[i] = decode.session().submit(whole);
  }
  decode.session().run_until([&] { return decode.session().idle(); });

  EXPECT_EQ(let_go, std::ssize(requests));
  for (size_t i = 0; i < requests.size(); ++i) {
    const Ids tokens = decode.session().completion(ids[i]).tokens;
    EXPECT_EQ(tokens, prefill.whole(requests[i])) << requests[i].prompt.size();
    prefill.session().release(held_ids[i]);
  }
  prefill.session().run_until([&] { return prefill.session().idle(); });
  for (Launch* launch : {&prefill, &decode}) {
    EXPECT_EQ(launch->session().state().blocks_in_use, 0);
    EXPECT_EQ(launch->session().state().held, 0);
    launch->session().shut_down();
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Handoff,
                         testing::Values(HandoffCase{{1, 1, 1}, {2, 1, 1}, 0, false},
                                         HandoffCase{{4, 4, 1}, {4, 1, 1}, 1, false},
                                         HandoffCase{{2, 1, 1}, {4, 2, 2}, 2, true}));

}  // namespace
}  // namespace troupe::launcher
