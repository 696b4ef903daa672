#include "comm/arena.h"

#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "world.h"

namespace troupe::comm {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(ArenaShape, SharesTheBufferOfARankAmongItsPeersInTwoSlotsEach) {
  const ArenaShape shape{.world_size = 3, .comm_buffer_bytes = 1'000'000};

  EXPECT_EQ(shape.slot_bytes(), 166'656u);  // 1'000'000 / 3 / 2 = 166'666, down to a multiple of 64
}

TEST(Arena, NamesTheKeyAndTheValueThatWouldDoWhenSlotsAreTooSmall) {
  const ArenaShape shape{.world_size = 1024, .comm_buffer_bytes = 4 * kMiB};

  try {
    Arena::create(shape);
    FAIL() << "accepted slots of 2 KiB";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("comm_buffer_mb: 4 MiB"), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("write 8"), std::string::npos) << error.what();
  }
}

TEST(Arena, RefusesABufferThatNoProcessCanMap) {
  EXPECT_THROW(Arena::create({.world_size = 128, .comm_buffer_bytes = SIZE_MAX / 64}), UserError);
}

TEST(Arena, TheSlotsOfDifferentWindowsDoNotOverlapAndTheLastEndsInside) {
  const Arena arena = make_arena(3);
  const size_t slot_bytes = arena.shape().slot_bytes();
  std::byte* next = arena.payload(0, 0, 0);

  for (int receiver = 0; receiver < 3; ++receiver)
    for (int sender = 0; sender < 3; ++sender)
      for (int slot = 0; slot < 2; ++slot, next += slot_bytes)
        ASSERT_EQ(arena.payload(receiver, sender, slot), next);

  // The arena begins with the page that holds the state of rank 0.
  const auto state = reinterpret_cast<uintptr_t>(&arena.rank_state(0));
  const auto* start = reinterpret_cast<const std::byte*>(state / 4096 * 4096);
  EXPECT_EQ(next, start + arena.shape().bytes());
  EXPECT_GE(arena.payload(0, 0, 0), reinterpret_cast<const std::byte*>(&arena.window(2, 2) + 1));
}

TEST(Arena, ASecondMappingSeesWhatTheFirstWrote) {
  const Arena first = make_arena(2);
  const Arena second = Arena::attach(Fd(::dup(first.fd())), first.shape());

  first.activity(1).step = 42;
  *first.payload(1, 0, 1) = std::byte{7};

  EXPECT_EQ(second.snapshot(1).step, 42u);
  EXPECT_EQ(*second.payload(1, 0, 1), std::byte{7});
}

TEST(Arena, AttachRefusesAnotherShape) {
  const Arena arena = make_arena(4);
  const ArenaShape other_size{.world_size = 2, .comm_buffer_bytes = 4096 * 4};
  ArenaShape same_size = arena.shape();
  same_size.comm_buffer_bytes += 1;  // the slots are the same, so is everything else
  const Fd stranger = create_shared_memory("stranger", arena.shape().bytes());

  EXPECT_THROW(Arena::attach(Fd(::dup(arena.fd())), other_size), RankError);
  EXPECT_THROW(Arena::attach(Fd(::dup(stranger.get())), arena.shape()), RankError);
  EXPECT_NO_THROW(Arena::attach(Fd(::dup(arena.fd())), same_size));
}

// The node that the kernel prefers for the page at `address`, -1: none.
int preferred_node(const std::byte* address) {
  int mode = -1;
  unsigned long nodes[16] = {};
  if (::syscall(SYS_get_mempolicy, &mode, nodes, sizeof(nodes) * 8, address, MPOL_F_ADDR) != 0)
    return -1;
  for (size_t node = 0; mode == MPOL_PREFERRED && node < sizeof(nodes) * 8; ++node)
    if (nodes[node / 64] >> node % 64 & 1) return static_cast<int>(node);
  return -1;
}

bool may_set_memory_policy() {
  const Mapping probe = Mapping::anonymous(4096);
  return ::syscall(SYS_mbind, probe.data(), 4096, MPOL_DEFAULT, nullptr, 0, 0) == 0;
}

TEST(Arena, WindowsOfARankInAGroupComeFromItsNodeWhoeverTouchesThem) {
  if (!may_set_memory_policy()) GTEST_SKIP() << "the system refuses mbind";
  Arena receiver_side = make_arena(3);
  const Arena sender_side = Arena::attach(Fd(::dup(receiver_side.fd())), receiver_side.shape());
  Communicator communicator(receiver_side, 1, kPatient);
  ASSERT_EQ(preferred_node(sender_side.payload(1, 0, 0)), -1);

  const ProcessGroup group(communicator, 0, {0, 1});

  unsigned cpu = 0, node = 0;
  ASSERT_EQ(::getcpu(&cpu, &node), 0);
  for (int sender = 0; sender < 3; ++sender)
    for (int slot = 0; slot < 2; ++slot) {
      EXPECT_EQ(preferred_node(sender_side.payload(1, sender, slot)), static_cast<int>(node));
      EXPECT_EQ(preferred_node(sender_side.payload(0, sender, slot)), -1);
      EXPECT_EQ(preferred_node(sender_side.payload(2, sender, slot)), -1);
    }
}

// The flags of the mapping that holds `address` in /proc/self/smaps.
std::string mapping_flags(const std::byte* address) {
  std::ifstream smaps("/proc/self/smaps");
  bool is_here = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2)
      is_here = begin <= reinterpret_cast<uintptr_t>(address) &&
                reinterpret_cast<uintptr_t>(address) < end;
    if (is_here && line.starts_with("VmFlags:")) return line + " ";
  }
  return "";
}

TEST(Arena, AsksForHugePagesForWindowsAloneAndOnlyWhereTheShapeSaysSo) {
  const Mapping probe = Mapping::anonymous(4096);
  if (::madvise(probe.data(), 4096, MADV_HUGEPAGE) != 0)
    GTEST_SKIP() << "the system has no transparent huge pages";
  const ArenaShape normal{.world_size = 2, .comm_buffer_bytes = 8 * kMiB};
  ArenaShape huge = normal;
  huge.huge_windows = true;

  const Arena normal_arena = Arena::create(normal), huge_arena = Arena::create(huge);
  const Arena attached = Arena::attach(Fd(::dup(huge_arena.fd())), huge);

  const auto flags = [](const std::byte* address) { return mapping_flags(address); };
  EXPECT_FALSE(contains(flags(normal_arena.payload(1, 1, 1)), " hg "));
  for (const Arena* arena : {&huge_arena, &attached}) {
    EXPECT_TRUE(contains(flags(arena->payload(0, 0, 0)), " hg "));
    EXPECT_TRUE(contains(flags(arena->payload(1, 1, 1)), " hg "));
    const auto* state = reinterpret_cast<const std::byte*>(&arena->rank_state(0));
    EXPECT_FALSE(contains(flags(state), " hg "));
  }
}

TEST(Arena, KeepsTheFirstFailureOfARankAndCutsALongOne) {
  const Arena arena = make_arena(2);
  EXPECT_EQ(arena.failure(1), "");
  EXPECT_EQ(arena.first_failed_rank(), -1);

  arena.publish_failure(1, std::string(1000, 'x'));
  arena.publish_failure(1, "later");
  arena.publish_failure(0, "another");

  EXPECT_EQ(arena.failure(1), std::string(kFailureTextBytes, 'x'));
  EXPECT_EQ(arena.failure(0), "another");
  EXPECT_EQ(arena.first_failed_rank(), 1);
}

TEST(Arena, SurvivesAnImpossibleFailureLength) {
  const Arena arena = make_arena(1);

  arena.rank_state(0).failure_length = 0xffffffff;

  EXPECT_EQ(arena.failure(0).size(), kFailureTextBytes);
}

TEST(Activity, StartsOutsideStepsLayersAndCollectives) {
  const Arena arena = make_arena(1);

  EXPECT_EQ(describe(arena.snapshot(0)), "starting");
}

TEST(Activity, IsDescribedInOneLine) {
  const ActivitySnapshot waiting{.stage = Stage::kDecode,
                                 .step = 14,
                                 .layer = 3,
                                 .operation = Operation::kDispatch,
                                 .group = 0,
                                 .sequence = 421,
                                 .waiting_for = 2};
  const ActivitySnapshot loading{.stage = Stage::kLoading, .step = 0, .layer = 7};

  EXPECT_EQ(describe(waiting),
            "decode step 14, layer 3, dispatch of group 0 (#421), waiting for rank 2");
  EXPECT_EQ(describe(loading), "loading weights");
}

TEST(Activity, OfNonsenseIsStillDescribed) {
  const ActivitySnapshot nonsense{.stage = static_cast<Stage>(99),
                                  .operation = static_cast<Operation>(77)};

  EXPECT_EQ(describe(nonsense), "unknown stage, unknown operation of group 0 (#0)");
}

TEST(Activity, FollowsTheCommunicator) {
  Arena arena = make_arena(1);
  Communicator communicator(arena, 0, kPatient);

  communicator.enter_step(Stage::kPrefill, 5);
  communicator.enter_layer(8);

  EXPECT_EQ(describe(arena.snapshot(0)), "prefill step 5, layer 8");
}

}  // namespace
}  // namespace troupe::comm
