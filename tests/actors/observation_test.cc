#include "actors/observation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "actors/messages/message_generated.h"

namespace troupe::actors {
namespace {

constexpr int kLayers = 3, kTopk = 2, kVocab = 50, kHidden = 30, kRows = 7;

model::ModelConfig small_model() {
  model::ModelConfig config;
  config.num_hidden_layers = kLayers - 1;
  config.vocab_size = kVocab;
  config.hidden_size = kHidden;
  config.gate.topk = kTopk;
  return config;
}

ObservationShape shape_of(int observe) {
  return ObservationShape::of(static_cast<uint8_t>(observe), kRows, small_model());
}

constexpr int bit(msg::Observe what) { return static_cast<int>(what); }

TEST(Observation, TakesNoMemoryWhenNothingIsShown) {
  EXPECT_EQ(shape_of(0).bytes(), 0);
  EXPECT_EQ(shape_of(bit(msg::Observe::LogProbs)).bytes(), 0);  // they travel in StepDone
}

TEST(Observation, SectionsAreWholePages) {
  for (int observe = 0; observe < 32; ++observe) EXPECT_EQ(shape_of(observe).bytes() % 4096, 0);
}

// Fills every part that is on with numbers of its own and reads all of them back.
TEST(Observation, PartsLieInsideTheSectionAndDoNotOverlap) {
  for (int observe = 0; observe < 32; ++observe) {
    const ObservationShape shape = shape_of(observe);
    std::vector<std::byte> section(shape.bytes());
    const Observation observation(shape, section.data());
    std::vector<Matrix<int32_t>> parts;
    const auto add = [&](const auto& part, int64_t cols) {
      EXPECT_EQ(part.rows, kRows);
      EXPECT_EQ(part.cols, cols);
      EXPECT_EQ(part.stride, cols);
      parts.emplace_back(reinterpret_cast<int32_t*>(part.data), part.rows, part.cols);
    };
    if ((observe & bit(msg::Observe::Logits)) != 0) add(observation.logits(), kVocab);
    if ((observe & bit(msg::Observe::MtpLogits)) != 0) add(observation.mtp_logits(), kVocab);
    for (int layer = 0; layer < kLayers && observation.has_router(); ++layer) {
      add(observation.router_ids(layer), kTopk);
      add(observation.router_weights(layer), kTopk);
    }
    for (int layer = 0; layer < kLayers && observation.has_layers(); ++layer)
      for (const LayerStage stage :
           {LayerStage::kInput, LayerStage::kAttention, LayerStage::kFeedForward})
        add(observation.hidden(layer, stage), kHidden);

    for (size_t i = 0; i < parts.size(); ++i) {
      const auto* bytes = reinterpret_cast<const std::byte*>(parts[i].data);
      ASSERT_GE(bytes, section.data());
      ASSERT_LE(bytes + parts[i].rows * parts[i].cols * 4, section.data() + section.size());
      std::fill_n(parts[i].data, parts[i].rows * parts[i].cols, static_cast<int32_t>(i + 1));
    }
    for (size_t i = 0; i < parts.size(); ++i)
      EXPECT_TRUE(std::all_of(parts[i].data, parts[i].data + parts[i].rows * parts[i].cols,
                              [&](int32_t x) { return x == static_cast<int32_t>(i + 1); }))
          << "part " << i << " of observe " << observe;
  }
}

TEST(Observation, RefusesPartsThatAreOffAndLayersThatAreNotThere) {
  std::vector<std::byte> section(shape_of(bit(msg::Observe::Router)).bytes());
  const Observation observation(shape_of(bit(msg::Observe::Router)), section.data());

  EXPECT_TRUE(observation.has_router());
  EXPECT_THROW(observation.logits(), std::logic_error);
  EXPECT_THROW(observation.mtp_logits(), std::logic_error);
  EXPECT_THROW(observation.router_ids(-1), std::logic_error);
  EXPECT_THROW(observation.router_weights(kLayers), std::logic_error);
  EXPECT_THROW(observation.hidden(0, LayerStage::kInput), std::logic_error);
  EXPECT_THROW(Observation().router_ids(0), std::logic_error);
}

}  // namespace
}  // namespace troupe::actors
