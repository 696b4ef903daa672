// What a rank is doing, as values and as words.
#include <fmt/format.h>

#include "comm/arena.h"

namespace troupe::comm {

const char* stage_name(Stage stage) {
  switch (stage) {
    case Stage::kStarting:
      return "starting";
    case Stage::kLoading:
      return "loading weights";
    case Stage::kIdle:
      return "idle";
    case Stage::kPrefill:
      return "prefill";
    case Stage::kDecode:
      return "decode";
    case Stage::kDraft:
      return "draft";
    case Stage::kStopping:
      return "stopping";
  }
  return "unknown stage";  // shared memory may hold anything
}

const char* operation_name(Operation operation) {
  switch (operation) {
    case Operation::kNone:
      return "none";
    case Operation::kBarrier:
      return "barrier";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kAllGather:
      return "all_gather";
    case Operation::kReduceScatter:
      return "reduce_scatter";
    case Operation::kAllReduce:
      return "all_reduce";
    case Operation::kAllToAll:
      return "all_to_all";
    case Operation::kAllToAllV:
      return "all_to_all_v";
    case Operation::kDispatch:
      return "dispatch";
    case Operation::kCombine:
      return "combine";
  }
  return "unknown operation";
}

ActivitySnapshot Arena::snapshot(int rank) const {
  const Activity& activity = this->activity(rank);
  constexpr auto kRelaxed = std::memory_order_relaxed;
  return {.stage = activity.stage.load(kRelaxed),
          .step = activity.step.load(kRelaxed),
          .layer = activity.layer.load(kRelaxed),
          .operation = activity.operation.load(kRelaxed),
          .group = activity.group.load(kRelaxed),
          .sequence = activity.sequence.load(kRelaxed),
          .waiting_for = activity.waiting_for.load(kRelaxed),
          .beat_ns = activity.beat_ns.load(kRelaxed)};
}

std::string describe_call(Operation operation, uint32_t group, uint64_t sequence) {
  return fmt::format("{} of group {} (#{})", operation_name(operation), group, sequence);
}

std::string describe_place(const ActivitySnapshot& snapshot) {
  const Stage stage = snapshot.stage;
  const bool in_step =
      stage == Stage::kPrefill || stage == Stage::kDecode || stage == Stage::kDraft;
  std::string text = stage_name(stage);
  if (stage == Stage::kIdle && snapshot.step > 0)
    text += fmt::format(" after step {}", snapshot.step);
  if (in_step && snapshot.step > 0) text += fmt::format(" step {}", snapshot.step);
  if (in_step && snapshot.layer >= 0) text += fmt::format(", layer {}", snapshot.layer);
  return text;
}

std::string error_prefix(int rank, const ActivitySnapshot& snapshot) {
  std::string text = fmt::format("rank {}: ", rank);
  if (snapshot.operation != Operation::kNone)
    text += describe_call(snapshot.operation, snapshot.group, snapshot.sequence) + ", ";
  return text + describe_place(snapshot) + ": ";
}

std::string describe(const ActivitySnapshot& snapshot) {
  std::string text = describe_place(snapshot);
  if (snapshot.operation != Operation::kNone)
    text += ", " + describe_call(snapshot.operation, snapshot.group, snapshot.sequence);
  if (snapshot.waiting_for >= 0) text += fmt::format(", waiting for rank {}", snapshot.waiting_for);
  return text;
}

}  // namespace troupe::comm
