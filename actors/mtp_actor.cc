#include "actors/mtp_actor.h"

#include <cstring>

#include "layers/linear.h"
#include "layers/rms_norm.h"

namespace troupe::actors {

MtpActor::MtpActor(Mailbox& mailbox, const RankContext& context)
    : Actor(mailbox, msg::ActorKind::Mtp),
      context_(context),
      embedding_(context, context.weights.mtp->embed) {
  Workspace& workspace = context_.workspace;
  const int64_t hidden = context_.config.hidden_size;
  hidden_ = workspace.allocate(context_.max_rows, hidden);
  normed_ = workspace.allocate(context_.max_rows, hidden);
  chain_normed_ = workspace.allocate(context_.max_sequences, hidden);
  fused_ = workspace.allocate(context_.max_rows, 2 * hidden);
  sequences_ = workspace.allocate(context_.max_rows, 1);
  positions_ = workspace.allocate(context_.max_rows, 1);
  drafts_ = workspace.allocate(context_.max_sequences, std::max(1, context_.max_drafts));
  chains_.reserve(context_.max_sequences);
  next_tokens_.reserve(context_.max_rows);
}

void MtpActor::add_row(int sequence, int position, int32_t next_token,
                       const float* previous_hidden) {
  TROUPE_CHECK(num_rows_ < context_.max_rows, "{} rows", num_rows_);
  const Workspace& workspace = context_.workspace;
  workspace.ints(sequences_).row(num_rows_)[0] = sequence;
  workspace.ints(positions_).row(num_rows_)[0] = position;
  next_tokens_.push_back(next_token);
  const Matrix<float> fused = workspace.floats(fused_);
  std::memcpy(fused.row(num_rows_) + context_.config.hidden_size, previous_hidden,
              context_.config.hidden_size * sizeof(float));
  ++num_rows_;
}

void MtpActor::on(const msg::Verified& verified) {
  const Matrix<float> hidden = context_.workspace.floats(*verified.hidden());
  const Matrix<int32_t> counts = context_.workspace.ints(*verified.counts());
  const Matrix<int32_t> sampled = context_.workspace.ints(*verified.tokens());
  pass_ = 0;
  num_rows_ = 0;
  next_tokens_.clear();
  chains_.clear();
  int s = 0, step_row = 0;
  for (const msg::SequencePlan* plan : *plan_->sequences()) {
    const int size = static_cast<int>(plan->tokens()->size());
    const int base = size - 1 - plan->num_drafts();
    const int rows = plan->sample() ? base + counts.row(s)[0] : size;
    for (int i = 0; i < rows; ++i) {
      const int32_t next = plan->sample() && i >= base ? sampled.row(s)[i - base]
                           : i + 1 < size              ? plan->tokens()->Get(i + 1)
                                                       : plan->next_token();
      add_row(s, plan->first_position() + i, next, hidden.row(step_row + i));
    }
    if (plan->sample()) chains_.push_back({s, num_rows_ - 1, plan->first_position() + rows - 1});
    step_row += size;
    ++s;
  }
  run_pass(plan_->max_rows());
}

void MtpActor::run_pass(int max_rows) {
  context_.communicator.enter_step(comm::Stage::kDraft, plan_->step());
  const auto span = context_.span(comm::TraceOp::kDraft, num_rows_);
  const Workspace& workspace = context_.workspace;
  const model::MtpWeights& weights = *context_.weights.mtp;
  const int64_t width = context_.config.hidden_size;
  const float eps = context_.config.rms_norm_eps;
  // Of an attention group's rows each rank prepares its slice, as the layers expect it.
  const comm::ProcessGroup& group = context_.groups->attn_tp;
  const model::Range own = model::piece(num_rows_, group.rank(), group.size());
  const Matrix<float> fused = workspace.floats(slice_rows(first_rows(fused_, num_rows_), own));
  const Matrix<float> embedding(fused.data, fused.rows, width, fused.stride);
  const Matrix<float> previous(fused.data + width, fused.rows, width, fused.stride);
  embedding_.lookup(std::span(next_tokens_).subspan(own.begin, own.size()), embedding);
  layers::rms_norm(embedding, weights.enorm, eps, embedding, context_.rounding);
  layers::rms_norm(previous, weights.hnorm, eps, previous, context_.rounding);

  const msg::Tensor hidden = first_rows(hidden_, num_rows_);
  layers::linear(weights.eh_proj, inputs_.prepare(weights.eh_proj, fused, context_.rounding),
                 workspace.floats(slice_rows(hidden, own)), context_.rounding);

  const msg::Tensor sequences = first_rows(sequences_, num_rows_);
  const msg::Tensor positions = first_rows(positions_, num_rows_);
  send(neighbour(msg::ActorKind::Attention),
       msg::CreateForwardLayers(builder(), context_.mtp_layer(), context_.mtp_layer() + 1, max_rows,
                                &hidden, &sequences, &positions));
}

void MtpActor::on(const msg::LayersDone& done) {
  const Workspace& workspace = context_.workspace;
  const Matrix<float> normed = workspace.floats(first_rows(normed_, num_rows_));
  layers::rms_norm(workspace.floats(*done.hidden()), context_.weights.mtp->head_norm,
                   context_.config.rms_norm_eps, normed, context_.rounding);
  const msg::Tensor last = first_rows(chain_normed_, static_cast<int64_t>(chains_.size()));
  for (size_t i = 0; i < chains_.size(); ++i)
    std::memcpy(workspace.floats(last).row(static_cast<int64_t>(i)),
                normed.row(pass_ == 0 ? chains_[i].last_row : static_cast<int64_t>(i)),
                normed.cols * sizeof(float));
  const bool observed =
      pass_ == 0 && (plan_->observe() & static_cast<uint8_t>(msg::Observe::MtpLogits)) != 0;
  const msg::Tensor all = first_rows(normed_, num_rows_);
  tell(neighbour(msg::ActorKind::LmHead),
       [&](auto& b) { return msg::CreateDraftRows(b, observed ? &all : &last, observed); });
}

void MtpActor::on(const msg::DraftTokens& message) {
  const Workspace& workspace = context_.workspace;
  const Matrix<int32_t> tokens = workspace.ints(*message.tokens());
  const bool all_rows = tokens.rows != static_cast<int64_t>(chains_.size());
  const auto sequences = static_cast<int64_t>(chains_.size());
  // [sequences, draft_steps], dense: as the scheduler reads it.
  const msg::Tensor drafts_tensor(drafts_.offset(), static_cast<int32_t>(sequences),
                                  plan_->draft_steps());
  const Matrix<int32_t> drafts = workspace.ints(drafts_tensor);
  if (pass_ < plan_->draft_steps())
    for (int64_t i = 0; i < sequences; ++i)
      drafts.row(i)[pass_] = tokens.row(all_rows ? chains_[i].last_row : i)[0];
  if (++pass_ >= plan_->draft_steps())
    return tell(neighbour(msg::ActorKind::LmHead),
                [&](auto& b) { return msg::CreateDrafted(b, &drafts_tensor); });

  num_rows_ = 0;
  next_tokens_.clear();
  const Matrix<float> last = workspace.floats(chain_normed_);
  for (int64_t i = 0; i < sequences; ++i)
    add_row(chains_[i].sequence, chains_[i].position + pass_, drafts.row(i)[pass_ - 1],
            last.row(i));
  run_pass(plan_->max_sequences());
}

}  // namespace troupe::actors
