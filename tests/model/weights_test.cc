#include "model/weights.h"

#include <map>
#include <numeric>

#include "model/family_weights.h"
#include "tests/model/files.h"
#include "tests/model/loaded_world.h"
#include "tests/model/plain_checkpoint.h"
#include "tests/model/weight_walk.h"

namespace troupe::model {
namespace {

using Format = WeightOptions::Format;

const char* const kFp8 = "tests/goldens/ds3-tiny-fp8";
const char* const kBf16 = "tests/goldens/ds3-tiny-bf16";

struct Held {
  PlainValues values;
  std::vector<int> holders;  // of each element
};

// Compares every element that any rank holds with the checkpoint, and counts its holders.
std::map<std::string, Held> compare(const PlainCheckpoint& plain, const ModelConfig& config,
                                    const ParallelSizes& sizes, const LoadedWorld& world) {
  std::map<std::string, Held> held;
  for (const auto& [name, tensor] : plain.tensors) {
    const auto elements =
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
    held.insert({name, {plain.values(name), std::vector<int>(elements)}});
  }
  int64_t wrong = 0;
  for (int rank = 0; rank < sizes.world_size; ++rank) {
    std::string name;
    Held* tensor = nullptr;
    const auto visit = [&](const HeldElement& element) {
      if (name != element.tensor) {  // elements come tensor by tensor
        name = element.tensor;
        tensor = &held.at(name);
      }
      ++tensor->holders.at(tensor->values.index(element.row, element.col));
      const float value = tensor->values.at(element.row, element.col);
      const float expected = element.rounded ? round_to_bf16(value) : value;
      if (element.value == expected) return;
      if (++wrong <= 3)
        ADD_FAILURE() << element.tensor << "[" << element.row << ", " << element.col << "] is "
                      << element.value << ", expected " << expected << " on rank " << rank;
    };
    WeightWalk(config, sizes, rank, visit).model(world.ranks[rank].weights);
  }
  EXPECT_EQ(wrong, 0);
  return held;
}

// Every tensor of the checkpoint is held in full, each element by as many ranks as the layout says.
void expect_covered(const PlainCheckpoint& plain, const ParallelSizes& sizes,
                    const std::map<std::string, Held>& held) {
  for (const auto& [name, tensor] : plain.tensors) {
    if (name.ends_with("_scale_inv")) continue;
    const int expected = num_holders(name, sizes);
    for (const int count : held.at(name).holders) ASSERT_EQ(count, expected) << name;
  }
}

void expect_loads(const char* checkpoint, const ParallelSizes& sizes,
                  const WeightOptions& options) {
  const PlainCheckpoint plain(source_file(checkpoint));
  const ModelConfig config = read_model_config(source_file(checkpoint));
  const LoadedWorld world = load_world(checkpoint, sizes, options);
  expect_covered(plain, sizes, compare(plain, config, sizes, world));
}

TEST(Weights, OneRankHoldsEveryTensorOfEveryCheckpoint) {
  expect_loads(kBf16, {}, {.with_mtp = true});
  expect_loads(kFp8, {}, {});
  expect_loads("tests/goldens/ds-v2-lite-tiny", {}, {});
  expect_loads("models/tiny-moe", {}, {.with_mtp = true, .exact = true});
}

TEST(Weights, Fp8StaysOrIsWidened) {
  const auto type_of = [](Format format) {
    return load_world(kFp8, {}, {.format = format}).ranks[0].weights.layers[0].attention.o.type;
  };
  EXPECT_EQ(type_of(Format::kAuto), layers::WeightType::kFp8);
  EXPECT_EQ(type_of(Format::kBf16), layers::WeightType::kBf16);
  EXPECT_EQ(type_of(Format::kF32), layers::WeightType::kF32);
  expect_loads(kFp8, {}, {.format = Format::kBf16});
  expect_loads(kFp8, {}, {.format = Format::kF32, .exact = true});
}

// Numbers of the format's definition in the place of bf16 ones: any code that is finite.
TEST(Weights, F16IsRoundedOrWidened) {
  PlainCheckpoint plain(source_file(kBf16));
  for (auto& [name, tensor] : plain.tensors) {
    if (tensor.dtype != "BF16") continue;
    tensor.dtype = "F16";
    for (size_t i = 1; i < tensor.bytes.size(); i += 2)
      tensor.bytes[i] = static_cast<char>(tensor.bytes[i] & 0xbf);
  }
  const TemporaryDirectory directory;
  plain.write_to(directory.path());
  const ModelConfig config = read_model_config(source_file(kBf16));
  for (const bool exact : {false, true}) {
    const LoadedWorld world =
        load_world(directory.path(), config, {}, {.with_mtp = true, .exact = exact});
    EXPECT_EQ(world.ranks[0].weights.layers[0].attention.o.type,
              exact ? layers::WeightType::kF32 : layers::WeightType::kBf16);
    expect_covered(plain, {}, compare(plain, config, {}, world));
  }
}

// A source that counts how often each element is read.
class CountedSource final : public WeightSource {
 public:
  explicit CountedSource(const std::filesystem::path& directory) : source_(directory) {}

  bool has(std::string_view name) const override { return source_.has(name); }
  Dtype type(const TensorSpec& tensor) const override { return source_.type(tensor); }
  bool has_codes(const TensorSpec& tensor) const override { return source_.has_codes(tensor); }
  layers::SourceRows read(const TensorSpec& tensor, Range rows, Range cols,
                          RowBuffer& buffer) const override {
    elements_[tensor.name] += rows.size() * cols.size();
    return source_.read(tensor, rows, cols, buffer);
  }
  const std::map<std::string, int64_t>& elements() const { return elements_; }

 private:
  CheckpointSource source_;
  mutable std::map<std::string, int64_t> elements_;
};

// What one rank reads of each tensor when it loads.
std::map<std::string, int64_t> elements_read(const ParallelSizes& sizes, int rank) {
  const ModelConfig config = read_model_config(source_file(kBf16));
  const ParallelLayout layout(sizes, config);
  const CountedSource source(source_file(kBf16));
  const WeightOptions options{.with_mtp = true};
  WeightBuilder measured(source, options, sizes.world_size, rank);
  build_weights(config, layout, true, measured);
  const Mapping shared = Mapping::anonymous(measured.shared_bytes() + 1);
  const Mapping own = Mapping::anonymous(measured.own_bytes() + 1);
  WeightBuilder builder(source, options, sizes.world_size, rank, {shared.data(), own.data()});
  build_weights(config, layout, true, builder);
  return source.elements();
}

TEST(Weights, EachRankReadsItsPartAndTogetherTheyReadEverythingOnce) {
  const PlainCheckpoint plain(source_file(kBf16));
  const ParallelSizes layouts[] = {
      {.world_size = 4},
      {.world_size = 4,
       .attn_tp_size = 4,
       .dense_tp_size = 4,
       .moe_tp_size = 4,
       .embed_tp_size = 4,
       .lmhead_tp_size = 4,
       .o_proj_tp_size = 4,
       .shared_tp_size = 4},
      {.world_size = 4, .attn_tp_size = 2, .dense_tp_size = 4, .moe_tp_size = 2}};
  for (const ParallelSizes& sizes : layouts) {
    std::map<std::string, int64_t> all;
    for (int rank = 0; rank < sizes.world_size; ++rank)
      for (const auto& [name, elements] : elements_read(sizes, rank)) all[name] += elements;

    for (const auto& [name, tensor] : plain.tensors)
      EXPECT_EQ(all[name], std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1},
                                           std::multiplies<>()))
          << name;
  }
}

TEST(Weights, ARankReadsNoOtherRanksExperts) {
  const std::map<std::string, int64_t> read = elements_read({.world_size = 4}, 1);

  EXPECT_TRUE(read.contains("model.layers.1.mlp.experts.4.up_proj.weight"));
  EXPECT_FALSE(read.contains("model.layers.1.mlp.experts.3.up_proj.weight"));
  EXPECT_FALSE(read.contains("model.layers.1.mlp.experts.8.up_proj.weight"));
}

TEST(Weights, QuantisedFormatsTakeAllMatricesButTheGate) {
  using layers::WeightType;
  for (const auto& [format, type] : {std::pair{Format::kInt8, WeightType::kInt8},
                                     {Format::kInt4, WeightType::kInt4},
                                     {Format::kMxfp4, WeightType::kMxfp4}}) {
    for (const char* checkpoint : {kFp8, kBf16}) {
      const LoadedWorld world = load_world(checkpoint, {}, {.format = format});
      const ModelWeights& weights = world.ranks[0].weights;
      const AttentionWeights& attention = weights.layers.back().attention;
      const MlaWeights& mla = *attention.mla;
      for (const PackedMatrix* matrix :
           {&weights.lm_head, &mla.q_a, &mla.q_b, &mla.kv_a, &attention.o,
            &weights.layers.front().dense->gate_up, &weights.layers.back().moe->shared->down,
            &weights.layers.back().moe->experts.back().gate_up})
        EXPECT_EQ(matrix->type, type);
      EXPECT_EQ(mla.w_uk[0].type, WeightType::kInt8);
      EXPECT_EQ(mla.w_uv[0].type, WeightType::kInt8);
      EXPECT_EQ(weights.layers.back().moe->gate.type, WeightType::kBf16);
    }
  }
}

TEST(Weights, Fp8EqualsTheReferencesDequantisation) {
  const SafetensorsFile golden(source_file("tests/goldens/ds3-tiny-fp8/golden.safetensors"));
  const ModelConfig config = read_model_config(source_file(kFp8));
  const LoadedWorld world = load_world(kFp8, {}, {});
  std::map<std::string, int64_t> compared;

  WeightWalk(config, {}, 0, [&](const HeldElement& element) {
    const auto found = golden.tensors().find("dequant." + element.tensor);
    if (found == golden.tensors().end()) return;
    const int64_t index = element.row * found->second.shape[1] + element.col;
    float expected;
    std::memcpy(&expected, found->second.data + index * sizeof(float), sizeof(float));
    ASSERT_EQ(element.value, expected)
        << element.tensor << " " << element.row << " " << element.col;
    ++compared[element.tensor];
  }).model(world.ranks[0].weights);

  EXPECT_EQ(compared, (std::map<std::string, int64_t>{
                          {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 160 * 192},
                          {"model.layers.1.mlp.experts.3.down_proj.weight", 192 * 160}}));
}

TEST(Weights, AnyLayoutHoldsEveryElementWhereItSays) {
  expect_loads(kBf16, {.world_size = 4}, {.with_mtp = true});
  expect_loads(kBf16,
               {.world_size = 4,
                .attn_tp_size = 2,
                .dense_tp_size = 4,
                .moe_tp_size = 1,
                .embed_tp_size = 4,
                .lmhead_tp_size = 2,
                .shared_tp_size = 2},
               {.with_mtp = true});
  expect_loads(kFp8,
               {.world_size = 8,
                .attn_tp_size = 8,
                .dense_tp_size = 4,
                .moe_tp_size = 8,
                .embed_tp_size = 2,
                .lmhead_tp_size = 8,
                .shared_tp_size = 8},
               {});
  expect_loads(kFp8,
               {.world_size = 4,
                .attn_tp_size = 4,
                .dense_tp_size = 2,
                .moe_tp_size = 2,
                .shared_tp_size = 4},
               {.format = Format::kF32, .exact = true});
  expect_loads("tests/goldens/ds-v2-lite-tiny",
               {.world_size = 16, .attn_tp_size = 4, .moe_tp_size = 4, .shared_tp_size = 16}, {});
  expect_loads(kBf16, {.world_size = 4, .attn_tp_size = 4, .o_proj_tp_size = 2},
               {.with_mtp = true});
  expect_loads(kBf16, {.world_size = 4, .attn_tp_size = 4, .enable_o_proj_alltoall = true},
               {.with_mtp = true});
}

TEST(Weights, WhatRanksHoldAlikeLiesInTheSegmentOnce) {
  const ParallelSizes sizes{.world_size = 4, .attn_tp_size = 2};
  const LoadedWorld world = load_world(kFp8, sizes, {});
  const auto in_segment = [&](const void* pointer) {
    const auto* at = static_cast<const std::byte*>(pointer);
    return at >= world.shared.data() && at < world.shared.data() + world.shared.size();
  };
  const ModelWeights& first = world.ranks[0].weights;
  for (const auto& [weights, memory] : world.ranks) {
    EXPECT_TRUE(in_segment(weights.embed.rows));
    EXPECT_EQ(weights.embed.rows, first.embed.rows);
    EXPECT_EQ(weights.final_norm.data(), first.final_norm.data());
    EXPECT_EQ(weights.layers[1].moe->gate.data, first.layers[1].moe->gate.data);
    EXPECT_EQ(weights.layers[1].moe->shared->down.data, first.layers[1].moe->shared->down.data);
    EXPECT_FALSE(in_segment(weights.layers[1].moe->experts[0].down.data));
  }
  const auto o_of = [&](int rank) { return world.ranks[rank].weights.layers[2].attention.o.data; };
  EXPECT_EQ(o_of(0), o_of(2));
  EXPECT_EQ(o_of(1), o_of(3));
  EXPECT_NE(o_of(0), o_of(1));
  EXPECT_TRUE(in_segment(o_of(1)));
}

TEST(Weights, NothingIsSharedByOneRankNorIfEachHoldsItsOwn) {
  const ModelConfig config = read_model_config(source_file(kFp8));
  const auto shared_bytes = [&](const ParallelSizes& sizes) {
    return WeightLoader(source_file(kFp8), config, ParallelLayout(sizes, config), {})
        .shared_bytes();
  };
  EXPECT_EQ(shared_bytes({}), 0);
  const size_t all_alike = shared_bytes({.world_size = 2});
  EXPECT_EQ(shared_bytes({.world_size = 8}), all_alike);
  EXPECT_LT(shared_bytes({.world_size = 2, .attn_tp_size = 2}), all_alike);
}

// What the ranks hold together, each shared byte once, is one model; cutting adds only padding.
TEST(Weights, MemoryOfAllRanksIsThatOfOneModel) {
  const ModelConfig config = read_model_config(source_file("models/tiny-moe"));
  const auto total_bytes = [&](const ParallelSizes& sizes) {
    const WeightLoader loader(source_file("models/tiny-moe"), config, ParallelLayout(sizes, config),
                              {.with_mtp = true});
    size_t total = loader.shared_bytes();
    for (int rank = 0; rank < sizes.world_size; ++rank) total += loader.private_bytes(rank);
    return total;
  };
  const size_t one = total_bytes({});
  EXPECT_EQ(total_bytes({.world_size = 8}), one);
  const size_t cut = total_bytes({.world_size = 8,
                                  .attn_tp_size = 8,
                                  .dense_tp_size = 8,
                                  .embed_tp_size = 8,
                                  .lmhead_tp_size = 8,
                                  .shared_tp_size = 8});
  EXPECT_GE(cut, one);
  EXPECT_LT(cut, one + one / 10);
}

// Matrices keep the bytes of the checkpoint; norms and the bias of the gate, small, are widened.
TEST(Weights, LayerBytesAreThoseOfTheLayersTensors) {
  const std::filesystem::path directory = source_file(kBf16);
  const ModelConfig config = read_model_config(directory);
  const PlainCheckpoint plain(directory);
  const auto stored = [&](int layer, const std::string& part) {
    double bytes = 0;
    for (const auto& [name, tensor] : plain.tensors)
      if (name.starts_with(fmt::format("model.layers.{}.{}", layer, part)))
        bytes += static_cast<double>(tensor.bytes.size());
    return bytes;
  };

  const auto one_rank =
      WeightLoader(directory, config, ParallelLayout({}, config), {}).layer_bytes(0);
  const ParallelSizes sizes{.world_size = 4, .attn_tp_size = 4, .dense_tp_size = 4};
  const auto four =
      WeightLoader(directory, config, ParallelLayout(sizes, config), {}).layer_bytes(1);

  ASSERT_EQ(one_rank.size(), static_cast<size_t>(config.num_hidden_layers));
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    SCOPED_TRACE(layer);
    const auto all = stored(layer, "");
    EXPECT_NEAR(static_cast<double>(one_rank[layer]), all, 0.03 * all);
    double quarter = stored(layer, "mlp.experts");
    if (!config.is_moe_layer(layer)) quarter = stored(layer, "mlp");
    for (const char* cut : {"self_attn.q_b", "self_attn.kv_b", "self_attn.o"})
      quarter += stored(layer, cut);
    const double held = all - 0.75 * quarter;
    EXPECT_NEAR(static_cast<double>(four[layer]), held, 0.03 * all);
  }
}

TEST(Weights, TheSegmentDoesNotDependOnWhoLoadsFirst) {
  const ParallelSizes sizes{.world_size = 4, .attn_tp_size = 2};
  const LoadedWorld forward = load_world(kBf16, sizes, {.with_mtp = true});
  const LoadedWorld backward = load_world(kBf16, sizes, {.with_mtp = true}, true);

  ASSERT_EQ(forward.shared.size(), backward.shared.size());
  EXPECT_EQ(std::memcmp(forward.shared.data(), backward.shared.data(), forward.shared.size()), 0);
}

TEST(Weights, ProgressCountsUpToAnEvenShareOfTheWork) {
  const ModelConfig config = read_model_config(source_file("models/tiny-moe"));
  const ParallelSizes sizes{.world_size = 4};
  const WeightLoader loader(source_file("models/tiny-moe"), config, ParallelLayout(sizes, config),
                            {.with_mtp = true});
  const Mapping shared = Mapping::anonymous(loader.shared_bytes());
  std::vector<size_t> totals;
  for (int rank = 0; rank < 4; ++rank) {
    size_t last = 0, expected = 0;
    loader.load(rank, shared.data(), [&](size_t done, size_t total) {
      EXPECT_GT(done, last);
      last = done;
      expected = total;
    });
    EXPECT_EQ(last, expected);
    totals.push_back(expected);
  }
  const auto [least, most] = std::minmax_element(totals.begin(), totals.end());
  EXPECT_LE(*most - *least, size_t{1} << 20);  // the largest piece that is packed at once
}

TEST(Weights, DataMayLieAtAnyAddressOfTheFile) {
  const TemporaryDirectory directory;
  const PlainCheckpoint plain(source_file(kFp8));
  plain.write_to(directory.path(), 1);
  const ModelConfig config = read_model_config(source_file(kFp8));

  const LoadedWorld world = load_world(directory.path(), config, {}, {});

  compare(plain, config, {}, world);
}

TEST(Weights, MtpWithoutItsOwnCopiesUsesTheMainModels) {
  const TemporaryDirectory directory;
  PlainCheckpoint plain(source_file(kBf16));
  ASSERT_EQ(plain.tensors.erase("model.layers.3.embed_tokens.weight"), 1);
  ASSERT_EQ(plain.tensors.erase("model.layers.3.shared_head.head.weight"), 1);
  plain.write_to(directory.path());
  const ModelConfig config = read_model_config(source_file(kBf16));

  const LoadedWorld world = load_world(directory.path(), config, {}, {.with_mtp = true});

  const ModelWeights& weights = world.ranks[0].weights;
  EXPECT_EQ(weights.mtp->embed.rows, weights.embed.rows);
  EXPECT_EQ(weights.mtp->head.data, weights.lm_head.data);
}

TEST(Weights, TiedEmbeddingsAreTheLmHead) {
  const TemporaryDirectory directory;
  PlainCheckpoint plain(source_file(kFp8));
  ASSERT_EQ(plain.tensors.erase("lm_head.weight"), 1);
  plain.write_to(directory.path());
  ModelConfig config = read_model_config(source_file(kFp8));
  config.tie_word_embeddings = true;

  compare(plain, config, {}, load_world(directory.path(), config, {}, {}));
}

}  // namespace
}  // namespace troupe::model
