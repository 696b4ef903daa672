// actors/step_graph.h: the operations of a decode step, recorded once per batch shape
// (exe_mode: graph).
//
// What the actors of a rank say to each other in a step, which layer is next and where its rows lie
// in the workspace, follows from the shape of the batch; routing, positions, block tables and
// tokens are read from buffers by the operations themselves. So the first step of a shape runs as
// ever while its messages are kept, in order, with who hears them: that is the list of the step's
// operations and their buffers. A later step of the shape runs down the list. The handlers are
// those of an eager step, but what they tell each other is in the list already: nothing is built,
// queued, dispatched or allocated.
//
// A step with drafts is several lists: the verdict on drafts decides how many rows the MTP layer
// has, so ForwardLayers is sent in any case and begins a list of its own. Prefill runs eagerly: its
// shapes hardly ever come again, and its messages cost nothing beside its products.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "actors/messages/message_generated.h"

namespace troupe::actors {

class Actor;

// What the messages of a list depend on.
struct BatchShape {
  int32_t pass = 0;                // 0: from the plan on; n: from the n-th ForwardLayers on
  int32_t rows = 0, max_rows = 0;  // of its forward: this rank's, and of the rank with most
  int32_t sequences = 0;           // of this rank: in the plan, or that are drafted
  int32_t run_mtp = 0, draft_steps = 0;
  int32_t observe = 0;

  auto operator<=>(const BatchShape&) const = default;
};

// One recorded list.
class StepGraph {
 public:
  struct Operation {
    Actor* actor;
    size_t offset;  // of the message it hears

    const msg::Envelope& message(const StepGraph& graph) const;
  };

  void clear();
  void add(Actor& actor, std::span<const std::byte> message);
  std::span<const Operation> operations() const { return operations_; }

 private:
  struct alignas(16) Unit {  // FlatBuffers' alignment
    std::byte bytes[16];
  };
  std::vector<Operation> operations_;
  std::vector<Unit> messages_;
};

// The lists of one rank, and which of them is being recorded or replayed.
class StepGraphs {
 public:
  // Shapes kept. The least recently used one makes room for another and is recorded again if it
  // comes back.
  static constexpr size_t kMaxGraphs = 64;

  struct Counts {
    uint64_t recorded = 0, replayed = 0;  // lists
  };
  const Counts& counts() const { return counts_; }

  // Before a message is heard: true if it begins a list, as a plan of a decode step does, and a
  // ForwardLayers within one; the list before it ends. A plan of any other step ends recording.
  bool begin(const msg::Envelope& envelope);
  // Any other message, before `actor` hears it: part of the list that is being recorded, if any.
  void keep(Actor& actor, std::span<const std::byte> message) {
    if (state_ == State::kRecording) graph_->add(actor, message);
  }
  // After it was heard: the rest of its list, if that is known. Each operation is a parallel region
  // of the thread's team.
  void replay();
  // Whether a message to an actor of this rank is known from the list that is being replayed. All
  // of a list are asked for, in the order in which they would be sent.
  bool knows(const msg::Address& to, msg::Body type);

 private:
  enum class State { kOff, kRecording, kReplaying };
  struct Kept {
    StepGraph graph;
    uint64_t last_used = 0;
  };
  void find_list();
  Kept& room_for_another();

  std::map<BatchShape, Kept> graphs_;
  State state_ = State::kOff;
  bool decode_ = false;  // of the step
  BatchShape shape_;     // of the list
  BatchShape drafts_;    // of the step's lists after the first, but for the forward's rows
  StepGraph* graph_ = nullptr;
  size_t told_ = 0;  // of the messages of a replay
  uint64_t uses_ = 0;
  Counts counts_;
};

}  // namespace troupe::actors
