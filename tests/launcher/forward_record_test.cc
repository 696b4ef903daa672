#include "launcher/forward_record.h"

#include <gtest/gtest.h>

#include "actors/messages/message_generated.h"

namespace troupe::launcher {
namespace {

using actors::LayerStage;
using Kind = Operation::Kind;

// One dense and one MoE layer, and an MTP layer.
model::ModelConfig small_model() {
  model::ModelConfig config;
  config.num_hidden_layers = 2;
  config.num_nextn_predict_layers = 1;
  config.first_k_dense_replace = 1;
  config.n_routed_experts = 4;
  config.gate.topk = 2;
  config.hidden_size = 5;
  config.vocab_size = 7;
  return config;
}

const std::vector<Operation> kOperations{
    {Kind::kInput, 0},     {Kind::kAttention, 0},   {Kind::kFeedForward, 0}, {Kind::kAttention, 1},
    {Kind::kGate, 1},      {Kind::kFeedForward, 1}, {Kind::kLogits, 1},      {Kind::kInput, 2},
    {Kind::kAttention, 2}, {Kind::kGate, 2},        {Kind::kFeedForward, 2}, {Kind::kLogits, 2}};

TEST(OperationsOf, FollowTheForwardPassAndEndWithTheMtpLayer) {
  EXPECT_EQ(operations_of(small_model(), true), kOperations);
  EXPECT_EQ(operations_of(small_model(), false),
            std::vector(kOperations.begin(), kOperations.begin() + 7));
}

// Two inputs of 2 and 3 tokens, shown in one section of 5 rows.
class ForwardRecordTest : public testing::Test {
 protected:
  ForwardRecordTest()
      : shape_(actors::ObservationShape::of(31, 5, small_model())),
        section_(shape_.bytes()),
        rows_(shape_, section_.data()) {}

  ForwardRecord record(ForwardRecord::Keep keep = ForwardRecord::Keep::kHashes) const {
    ForwardRecord record(small_model(), kOperations, {2, 3}, keep);
    record.on_observed(0, rows_, 0, 0, 2);
    record.on_observed(1, rows_, 2, 0, 1);
    record.on_observed(1, rows_, 3, 1, 2);
    return record;
  }

  actors::ObservationShape shape_;
  std::vector<std::byte> section_;
  actors::Observation rows_;
};

TEST_F(ForwardRecordTest, OfTheSameRowsIsTheSame) {
  EXPECT_EQ(first_difference(record(), record()), std::nullopt);
}

TEST_F(ForwardRecordTest, SeesABitInEveryOperation) {
  const std::vector<std::pair<Operation, float*>> places{
      {{Kind::kInput, 0}, rows_.hidden(0, LayerStage::kInput).row(3)},
      {{Kind::kAttention, 1}, rows_.hidden(1, LayerStage::kAttention).row(3)},
      {{Kind::kFeedForward, 1}, rows_.hidden(1, LayerStage::kFeedForward).row(3)},
      {{Kind::kGate, 1}, rows_.router_weights(1).row(3)},
      {{Kind::kGate, 2}, reinterpret_cast<float*>(rows_.router_ids(2).row(3))},
      {{Kind::kLogits, 1}, rows_.logits().row(3)},
      {{Kind::kLogits, 2}, rows_.mtp_logits().row(3)}};
  for (const auto& [operation, element] : places) {
    const ForwardRecord before = record();
    *element = -0.0f;

    EXPECT_EQ(first_difference(record(), before),
              (Difference{.operation = operation, .tokens = 1, .first_token = 3}));
  }
}

TEST_F(ForwardRecordTest, NamesTheEarliestOperationAndCountsItsTokens) {
  const ForwardRecord before = record();
  rows_.logits().row(0)[0] = 1;
  for (const int row : {1, 2, 4}) rows_.hidden(0, LayerStage::kFeedForward).row(row)[4] = 1;

  EXPECT_EQ(first_difference(before, record()),
            (Difference{.operation = {Kind::kFeedForward, 0}, .tokens = 3, .first_token = 1}));
}

TEST_F(ForwardRecordTest, KeepsLogitsInTheOrderOfTheInputs) {
  for (int row = 0; row < 5; ++row) rows_.logits().row(row)[6] = static_cast<float>(row);

  const ForwardRecord kept = record(ForwardRecord::Keep::kLogits);

  ASSERT_EQ(kept.logits().rows, 5);
  for (int row = 0; row < 5; ++row) EXPECT_EQ(kept.logits().row(row)[6], static_cast<float>(row));
}

}  // namespace
}  // namespace troupe::launcher
