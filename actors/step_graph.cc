#include "actors/step_graph.h"

#include <algorithm>
#include <cstring>

#include "actors/actor.h"
#include "base/error.h"
#include "layers/team.h"

namespace troupe::actors {

namespace {

BatchShape shape_of(const msg::StepPlan& plan) {
  BatchShape shape{.max_rows = plan.max_rows(),
                   .sequences = static_cast<int32_t>(plan.sequences()->size()),
                   .run_mtp = plan.run_mtp(),
                   .observe = plan.observe()};
  for (const msg::SequencePlan* sequence : *plan.sequences())
    shape.rows += static_cast<int32_t>(sequence->tokens()->size());
  return shape;
}

BatchShape drafts_of(const msg::StepPlan& plan) {
  BatchShape shape{.draft_steps = plan.draft_steps(), .observe = plan.observe()};
  for (const msg::SequencePlan* sequence : *plan.sequences())
    shape.sequences += sequence->sample() ? 1 : 0;
  return shape;
}

}  // namespace

const msg::Envelope& StepGraph::Operation::message(const StepGraph& graph) const {
  return *flatbuffers::GetRoot<msg::Envelope>(graph.messages_[offset].bytes);
}

void StepGraph::clear() {
  operations_.clear();
  messages_.clear();
}

void StepGraph::add(Actor& actor, std::span<const std::byte> message) {
  const size_t offset = messages_.size();
  messages_.resize(offset + (message.size() + sizeof(Unit) - 1) / sizeof(Unit));
  std::memcpy(messages_[offset].bytes, message.data(), message.size());
  operations_.push_back({&actor, offset});
}

bool StepGraphs::begin(const msg::Envelope& envelope) {
  if (const auto* plan = envelope.body_as_StepPlan()) {
    decode_ = plan->decode();
    shape_ = shape_of(*plan);
    drafts_ = drafts_of(*plan);
  } else if (const auto* forward = envelope.body_as_ForwardLayers()) {
    const int32_t pass = shape_.pass + 1;
    shape_ = drafts_;
    shape_.pass = pass;
    shape_.rows = forward->hidden()->rows();
    shape_.max_rows = forward->max_rows();
  } else {
    return false;
  }
  state_ = State::kOff;
  if (decode_) find_list();
  return true;
}

void StepGraphs::find_list() {
  const auto known = graphs_.find(shape_);
  Kept& kept = known == graphs_.end() ? room_for_another() : known->second;
  kept.last_used = ++uses_;
  graph_ = &kept.graph;
  told_ = 0;
  state_ = known == graphs_.end() ? State::kRecording : State::kReplaying;
  ++(state_ == State::kRecording ? counts_.recorded : counts_.replayed);
}

// A full table gives the memory of its oldest list to the new one.
StepGraphs::Kept& StepGraphs::room_for_another() {
  if (graphs_.size() < kMaxGraphs) return graphs_[shape_];
  const auto oldest = std::ranges::min_element(
      graphs_, {}, [](const auto& entry) { return entry.second.last_used; });
  auto node = graphs_.extract(oldest);
  node.key() = shape_;
  node.mapped().graph.clear();
  return graphs_.insert(std::move(node)).position->second;
}

void StepGraphs::replay() {
  if (state_ != State::kReplaying) return;
  const StepGraph& graph = *graph_;
  for (const StepGraph::Operation& operation : graph.operations())
    layers::parallel_region([&] { operation.actor->receive(operation.message(graph)); });
  TROUPE_CHECK(told_ == graph.operations().size(), "{} of {}", told_, graph.operations().size());
  state_ = State::kOff;
}

bool StepGraphs::knows(const msg::Address& to, msg::Body type) {
  if (state_ != State::kReplaying) return false;
  const auto operations = graph_->operations();
  TROUPE_CHECK(told_ < operations.size(), "{} after the last of {} messages",
               msg::EnumNameBody(type), operations.size());
  const msg::Envelope& known = operations[told_].message(*graph_);
  TROUPE_CHECK(known.body_type() == type && known.to()->kind() == to.kind(), "{} instead of {}",
               msg::EnumNameBody(type), msg::EnumNameBody(known.body_type()));
  ++told_;
  return true;
}

}  // namespace troupe::actors
