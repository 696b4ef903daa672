// Every collective against a serial model. What a rank sends is a function of (seed, rank, index),
// so each rank computes by itself what it must receive, from everybody.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "base/error.h"
#include "world.h"

namespace troupe::comm {
namespace {

uint64_t mix(uint64_t a, uint64_t b, uint64_t c = 0) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu;
  x ^= x >> 31;
  x *= 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

std::byte byte_of(uint64_t seed, int rank, size_t i) { return std::byte(mix(seed, rank, i)); }

// Random in (-1, 1): sums in another order have other bits.
float float_of(uint64_t seed, int rank, size_t i) {
  return static_cast<float>(static_cast<int64_t>(mix(seed, rank, i))) * 0x1p-63f;
}

// Neighbouring pairs, level by level, an odd last one carried up.
std::vector<float> level_by_level(std::vector<std::vector<float>> vectors) {
  while (vectors.size() > 1) {
    std::vector<std::vector<float>> next;
    for (size_t i = 0; i + 1 < vectors.size(); i += 2) {
      for (size_t k = 0; k < vectors[i].size(); ++k) vectors[i][k] += vectors[i + 1][k];
      next.push_back(vectors[i]);
    }
    if (vectors.size() % 2 == 1) next.push_back(vectors.back());
    vectors = next;
  }
  return vectors[0];
}

float load(float x) { return x; }
float load(Bf16 x) { return to_float(x); }
float load(int8_t x) { return x; }
template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, Bf16>)
    return to_bf16(x);
  else if constexpr (std::is_same_v<T, int8_t>)
    return static_cast<int8_t>(std::clamp(x, -128.0f, 127.0f));  // a whole number
  else
    return x;
}

template <class T>
T number(uint64_t seed, int rank, size_t i) {
  const float x = float_of(seed, rank, i);
  return rounded<T>(std::is_same_v<T, int8_t> ? std::floor(x * 128) : x);
}

template <class T>
std::vector<T> numbers(uint64_t seed, int rank, size_t count) {
  std::vector<T> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = number<T>(seed, rank, i);
  return result;
}

std::vector<std::byte> bytes(uint64_t seed, int rank, size_t count) {
  std::vector<std::byte> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = byte_of(seed, rank, i);
  return result;
}

enum class Kind {
  kBarrier,
  kBroadcast,
  kAllGather,
  kAllGatherInPlace,
  kReduceScatter,
  kReduceScatterBf16,
  kReduceScatterInt8,
  kAllReduce,
  kAllReduceBf16,
  kAllReduceInt8,
  kAllToAll,
  kAllToAllV,
  kCount,
};

// One call of one rank, its buffers and what must come out.
class Call {
 public:
  Call(Kind kind, uint64_t seed, size_t count, ProcessGroup& group)
      : kind_(kind), seed_(seed), count_(count), group_(group) {
    prepare();
  }

  void run() {
    switch (kind_) {
      case Kind::kBarrier:
        return group_.barrier();
      case Kind::kBroadcast:
        group_.broadcast(out_, root());
        break;
      case Kind::kAllGather:
        group_.all_gather(in_, out_);
        break;
      case Kind::kAllGatherInPlace:
        group_.all_gather(mine(), out_);
        break;
      case Kind::kReduceScatter:
        group_.reduce_scatter(as<const float>(in_), as<float>(out_));
        break;
      case Kind::kReduceScatterBf16:
        group_.reduce_scatter(as<const Bf16>(in_), as<Bf16>(out_));
        break;
      case Kind::kReduceScatterInt8:
        group_.reduce_scatter(as<const int8_t>(in_), as<int8_t>(out_));
        break;
      case Kind::kAllReduce:
        group_.all_reduce(as<float>(out_));
        break;
      case Kind::kAllReduceBf16:
        group_.all_reduce(as<Bf16>(out_));
        break;
      case Kind::kAllReduceInt8:
        group_.all_reduce(as<int8_t>(out_));
        break;
      case Kind::kAllToAll:
        group_.all_to_all(in_, out_);
        break;
      default:
        group_.all_to_all_v(in_, out_, v_counts());
    }
    check();
  }

  // Any kind but a barrier.
  Pending start() {
    switch (kind_) {
      case Kind::kBroadcast:
        return group_.start_broadcast(out_, root());
      case Kind::kAllGather:
        return group_.start_all_gather(in_, out_);
      case Kind::kAllGatherInPlace:
        return group_.start_all_gather(mine(), out_);
      case Kind::kReduceScatter:
        return group_.start_reduce_scatter(as<const float>(in_), as<float>(out_));
      case Kind::kReduceScatterBf16:
        return group_.start_reduce_scatter(as<const Bf16>(in_), as<Bf16>(out_));
      case Kind::kReduceScatterInt8:
        return group_.start_reduce_scatter(as<const int8_t>(in_), as<int8_t>(out_));
      case Kind::kAllReduce:
        return group_.start_all_reduce(as<float>(out_));
      case Kind::kAllReduceBf16:
        return group_.start_all_reduce(as<Bf16>(out_));
      case Kind::kAllReduceInt8:
        return group_.start_all_reduce(as<int8_t>(out_));
      case Kind::kAllToAll:
        return group_.start_all_to_all(in_, out_);
      default:
        return group_.start_all_to_all_v(in_, out_, v_counts());
    }
  }

  void check() const {
    require(out_ == expected_, fmt::format("call of kind {}", static_cast<int>(kind_)));
  }

 private:
  int root() const { return static_cast<int>(seed_ % group_.size()); }
  std::span<std::byte> mine() { return std::span(out_).subspan(group_.rank() * count_, count_); }
  template <class T>
  static std::span<T> as(std::vector<std::byte>& data) {
    return {reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)};
  }
  template <class T>
  static std::vector<std::byte> bytes_of(const std::vector<T>& values) {
    const auto data = std::as_bytes(std::span(values));
    return {data.begin(), data.end()};
  }

  void prepare() {
    switch (kind_) {
      case Kind::kBarrier:
      case Kind::kCount:
        return;
      case Kind::kBroadcast:
        expected_ = bytes(seed_, root(), count_);
        out_ = group_.rank() == root() ? expected_ : std::vector<std::byte>(count_);
        return;
      case Kind::kAllGather:
      case Kind::kAllGatherInPlace:
        return prepare_all_gather();
      case Kind::kReduceScatter:
        return prepare_reduce_scatter<float>();
      case Kind::kReduceScatterBf16:
        return prepare_reduce_scatter<Bf16>();
      case Kind::kReduceScatterInt8:
        return prepare_reduce_scatter<int8_t>();
      case Kind::kAllReduce:
        return prepare_all_reduce<float>();
      case Kind::kAllReduceBf16:
        return prepare_all_reduce<Bf16>();
      case Kind::kAllReduceInt8:
        return prepare_all_reduce<int8_t>();
      case Kind::kAllToAll:
        return prepare_all_to_all();
      case Kind::kAllToAllV:
        return prepare_all_to_all_v();
    }
  }

  void prepare_all_gather() {
    in_ = bytes(seed_, group_.rank(), count_);
    for (int r = 0; r < group_.size(); ++r)
      for (size_t i = 0; i < count_; ++i) expected_.push_back(byte_of(seed_, r, i));
    out_.resize(expected_.size());
    if (kind_ == Kind::kAllGatherInPlace) std::copy(in_.begin(), in_.end(), mine().begin());
  }

  template <class T>
  void prepare_reduce_scatter() {
    in_ = bytes_of(numbers<T>(seed_, group_.rank(), count_ * group_.size()));
    expected_ = bytes_of(sums<T>(group_.rank() * count_, count_));
    out_.resize(expected_.size());
  }

  template <class T>
  void prepare_all_reduce() {
    out_ = bytes_of(numbers<T>(seed_, group_.rank(), count_));
    expected_ = bytes_of(sums<T>(0, count_));
  }

  void prepare_all_to_all() {
    in_ = bytes(seed_, group_.rank(), count_ * group_.size());
    for (int r = 0; r < group_.size(); ++r)
      for (size_t i = 0; i < count_; ++i)
        expected_.push_back(byte_of(seed_, r, group_.rank() * count_ + i));
    out_.resize(expected_.size());
  }

  // With gaps before each part, on both sides; those of `out` stay zero.
  void prepare_all_to_all_v() {
    const int n = group_.size(), me = group_.rank();
    int64_t send_displ = static_cast<int64_t>(seed_ % 3);
    int64_t recv_displ = static_cast<int64_t>(seed_ % 5);
    for (int r = 0; r < n; ++r) {
      send_bytes_.push_back(v_bytes(me, r));
      recv_bytes_.push_back(v_bytes(r, me));
      send_displs_.push_back(std::exchange(send_displ, send_displ + send_bytes_.back() + r));
      recv_displs_.push_back(std::exchange(recv_displ, recv_displ + recv_bytes_.back() + 2 * r));
    }
    in_ = bytes(seed_, me, send_displ);
    out_.resize(recv_displ);
    expected_.resize(recv_displ);
    for (int r = 0; r < n; ++r) {
      int64_t displ = static_cast<int64_t>(seed_ % 3);
      for (int to = 0; to < me; ++to) displ += v_bytes(r, to) + to;
      for (int64_t i = 0; i < recv_bytes_[r]; ++i)
        expected_[recv_displs_[r] + i] = byte_of(seed_, r, displ + i);
    }
  }

  ProcessGroup::VCounts v_counts() const {
    return {send_bytes_, send_displs_, recv_bytes_, recv_displs_};
  }

  int64_t v_bytes(int from, int to) const {
    if (seed_ % 5 == 0) {  // one rank gets all
      const auto taker = static_cast<int>(seed_ / 5 % static_cast<uint64_t>(group_.size()));
      return to == taker ? static_cast<int64_t>(count_) : 0;
    }
    switch (mix(seed_, from, to) % 4) {
      case 0:
        return 0;
      case 1:
        return static_cast<int64_t>(mix(seed_, to, from) % 100);
      default:
        return static_cast<int64_t>(count_) + (to % 3);
    }
  }

  template <class T>
  std::vector<T> sums(size_t begin, size_t count) const {
    std::vector<std::vector<float>> vectors(group_.size());
    for (int r = 0; r < group_.size(); ++r)
      for (size_t i = begin; i < begin + count; ++i)
        vectors[r].push_back(load(number<T>(seed_, r, i)));
    std::vector<T> result;
    for (const float sum : level_by_level(vectors)) result.push_back(rounded<T>(sum));
    return result;
  }

  Kind kind_;
  uint64_t seed_;
  size_t count_;
  ProcessGroup& group_;
  std::vector<std::byte> in_, out_, expected_;
  std::vector<int64_t> send_bytes_, send_displs_, recv_bytes_, recv_displs_;
};

// The groups a rank of the script is in: the world, the world backwards, its half.
std::vector<std::unique_ptr<ProcessGroup>> groups_of(Communicator& communicator) {
  const int n = communicator.world_size();
  const std::vector<int> world = ranks_up_to(n);
  const int half = (n + 1) / 2;
  const bool upper = communicator.world_rank() >= half;
  std::vector<std::unique_ptr<ProcessGroup>> groups;
  groups.push_back(std::make_unique<ProcessGroup>(communicator, 0, world));
  groups.push_back(std::make_unique<ProcessGroup>(communicator, 1,
                                                  std::vector<int>(world.rbegin(), world.rend())));
  groups.push_back(std::make_unique<ProcessGroup>(
      communicator, upper ? 3 : 2,
      upper ? std::vector<int>(world.begin() + half, world.end())
            : std::vector<int>(world.begin(), world.begin() + half)));
  return groups;
}

size_t random_count(std::mt19937& random) {
  constexpr size_t kSlot = kSmallSlot;
  const size_t choices[] = {0,
                            1,
                            kSlot / 4,
                            kSlot / 4 + 1,
                            kSlot - 1,
                            kSlot,
                            kSlot + 1,
                            3 * kSlot + 7,
                            16,  // around the ends of cache lines, in bytes and in floats
                            17,
                            63,
                            64,
                            65,
                            random() % 64,
                            random() % 64,
                            random() % kSlot};
  return choices[random() % std::size(choices)];
}

void stroll(std::mt19937& random) {
  if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
}

// The same random calls on every rank, with a rank's own pauses between them.
void run_script(Arena& arena, int world_rank, int rounds, CommMode mode = CommMode::kInline) {
  Communicator communicator(arena, world_rank, kPatient, {.mode = mode});
  const auto groups = groups_of(communicator);
  std::mt19937 script(7 + communicator.world_size());
  std::mt19937 pauses(world_rank);
  const auto random_group = [&]() -> ProcessGroup& { return *groups[script() % groups.size()]; };
  for (int round = 0; round < rounds; ++round) {
    if (script() % 3 != 0) {
      const auto kind = static_cast<Kind>(script() % static_cast<uint32_t>(Kind::kCount));
      const size_t count = random_count(script);
      Call call(kind, script(), count, random_group());
      stroll(pauses);
      call.run();
      continue;
    }
    // Two handles of any groups, with a blocking call between them and one after.
    const auto random_call = [&] {
      const auto kind = static_cast<Kind>(1 + script() % (static_cast<uint32_t>(Kind::kCount) - 1));
      const size_t count = random_count(script);
      const uint64_t seed = script();
      return Call(kind, seed, count, random_group());
    };
    Call first = random_call(), between = random_call(), second = random_call();
    Call after = random_call();
    Pending first_pending = first.start();
    stroll(pauses);
    between.run();
    Pending second_pending = second.start();
    stroll(pauses);
    if (script() % 2 == 0) after.run();
    first_pending.wait();
    first.check();
    stroll(pauses);
    second_pending.wait();
    second.check();
  }
}

class CollectivesScript : public testing::TestWithParam<int> {};

TEST_P(CollectivesScript, EqualsTheSerialModelInThreads) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors = run_threads(
      world_size, [&](int rank) { run_script(arena, rank, world_size > 8 ? 100 : 250); });

  EXPECT_EQ(errors, all_fine(world_size));
}

TEST_P(CollectivesScript, EqualsTheSerialModelInProcesses) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors = Processes(world_size, [&](int rank) { run_script(arena, rank, 50); }).join();

  EXPECT_EQ(errors, all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, CollectivesScript, testing::Values(1, 2, 3, 5, 8, 16));

// Handles on a thread of each rank, blocking calls on its main thread.
class CollectivesScriptWithCommThreads : public testing::TestWithParam<int> {};

TEST_P(CollectivesScriptWithCommThreads, EqualsTheSerialModel) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors =
      run_threads(world_size, [&](int rank) { run_script(arena, rank, 150, CommMode::kThread); });

  EXPECT_EQ(errors, all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, CollectivesScriptWithCommThreads, testing::Values(1, 3, 8));

class ManyRanks : public testing::TestWithParam<int> {};

TEST_P(ManyRanks, EqualTheSerialModel) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors = Processes(world_size, [&](int rank) { run_script(arena, rank, 8); }).join();

  EXPECT_EQ(errors, all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, ManyRanks, testing::Values(32, 128));

// Long vectors take another way than short ones: the sums must not show it.
TEST(AllReduce, OfLongAndShortVectorsAddsTheSameTree) {
  for (const int world_size : {2, 3, 5, 8}) {
    Arena arena = make_arena(world_size);
    const auto errors = run_threads(world_size, [&](int rank) {
      Communicator communicator(arena, rank, kPatient);
      ProcessGroup group(communicator, 0, ranks_up_to(world_size));
      for (const size_t count : {80'001u, 9'000u, 5u})
        for (const Kind kind : {Kind::kAllReduce, Kind::kAllReduceBf16, Kind::kAllReduceInt8})
          Call(kind, 99, count, group).run();
    });
    EXPECT_EQ(errors, all_fine(world_size));
  }
}

TEST(Barrier, NobodyLeavesBeforeTheLastHasCome) {
  const int world_size = 8;
  Arena arena = make_arena(world_size);
  std::atomic<int> arrived{0};

  const auto errors = run_threads(world_size, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(world_size));
    std::mt19937 pauses(rank);
    for (int round = 1; round <= 200; ++round) {
      stroll(pauses);
      ++arrived;
      group.barrier();
      require(arrived >= round * world_size, "left early");
      group.barrier();
    }
  });

  EXPECT_EQ(errors, all_fine(world_size));
}

TEST(Collectives, TwoRanksThatSendEachOtherLongMessagesBothAdvance) {
  Arena arena = make_arena(2);

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1});
    Call(Kind::kAllToAll, 5, 100 * kSmallSlot, group).run();
  });

  EXPECT_EQ(errors, all_fine(2));
}

TEST(Collectives, CutLongMessagesIntoChunksShorterThanASlot) {
  Arena arena = make_arena(3, size_t{2} << 20);

  const auto errors = run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {2, 0, 1});
    for (const Kind kind : {Kind::kAllGather, Kind::kAllReduce, Kind::kAllToAllV, Kind::kBroadcast})
      Call(kind, 5, 700'001, group).run();
  });

  EXPECT_EQ(errors, all_fine(3));
}

TEST(Collectives, CountWhatTheySendToOthers) {
  Arena arena = make_arena(3);

  const auto errors = run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1, 2});
    Call(Kind::kAllGather, 5, 10'000, group).run();
    require(communicator.bytes_sent() == 20'000, "bytes_sent");
  });

  EXPECT_EQ(errors, all_fine(3));
}

TEST(Pending, LetsBothSidesStartBeforeEitherWaits) {
  Arena arena = make_arena(2);
  Communicator one(arena, 0, kPatient), other(arena, 1, kPatient);
  ProcessGroup group_one(one, 0, {0, 1}), group_other(other, 0, {0, 1});
  Call call_one(Kind::kAllGather, 1, 100, group_one),
      call_other(Kind::kAllGather, 1, 100, group_other);

  Pending pending_one = call_one.start();
  Pending pending_other = call_other.start();
  pending_one.wait();
  pending_other.wait();

  call_one.check();
  call_other.check();
}

TEST(Pending, AFourthCallOfAGroupIsRefused) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});
  std::vector<Call> calls(4, Call(Kind::kAllGather, 1, 100, group));

  Pending first = calls[0].start(), second = calls[1].start(), third = calls[2].start();

  EXPECT_THROW(calls[3].start(), std::logic_error);
}

TEST(Pending, DroppedBeforeItsEndLeavesTheRankUnableToCommunicate) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});

  {
    Call call(Kind::kAllGather, 1, 100, group);
    const Pending dropped = call.start();
  }

  EXPECT_THROW(group.barrier(), RankError);
}

}  // namespace
}  // namespace troupe::comm
