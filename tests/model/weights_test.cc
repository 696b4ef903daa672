#include "model/weights.h"

#include <numeric>

#include "tests/model/files.h"
#include "tests/model/plain_checkpoint.h"
#include "tests/model/weight_walk.h"

namespace troupe::model {
namespace {

using Format = WeightOptions::Format;

const char* const kFp8 = "tests/goldens/ds3-tiny-fp8";
const char* const kBf16 = "tests/goldens/ds3-tiny-bf16";

// All ranks of a layout, loaded one after the other, over one shared segment.
struct LoadedWorld {
  Mapping shared;
  std::vector<WeightLoader::Loaded> ranks;
};

LoadedWorld load_world(const std::filesystem::path& directory, const ModelConfig& config,
                       const ParallelSizes& sizes, const WeightOptions& options,
                       bool last_rank_first = false) {
  const WeightLoader loader(directory, config, ParallelLayout(sizes, config), options);
  LoadedWorld world{Mapping::anonymous(loader.shared_bytes()), {}};
  world.ranks.resize(sizes.world_size);
  for (int i = 0; i < sizes.world_size; ++i) {
    const int rank = last_rank_first ? sizes.world_size - 1 - i : i;
    world.ranks[rank] = loader.load(rank, world.shared.data(), nullptr);
    EXPECT_EQ(world.ranks[rank].private_memory.size(), loader.private_bytes(rank));
  }
  return world;
}

LoadedWorld load_world(const char* checkpoint, const ParallelSizes& sizes,
                       const WeightOptions& options, bool last_rank_first = false) {
  const std::filesystem::path directory = source_file(checkpoint);
  return load_world(directory, read_model_config(directory), sizes, options, last_rank_first);
}

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

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// How many ranks hold each element of a tensor.
int num_holders(const std::string& tensor, const ParallelSizes& sizes) {
  const int world = sizes.world_size;
  if (contains(tensor, "mlp.experts.")) return 1;
  if (contains(tensor, "shared_experts")) return world / sizes.shared_tp_size;
  if (contains(tensor, "mlp.gate.") || contains(tensor, "norm")) return world;
  if (contains(tensor, "mlp.")) return world / sizes.dense_tp_size;
  if (contains(tensor, "embed_tokens")) return world / sizes.embed_tp_size;
  if (contains(tensor, "head")) return world / sizes.lmhead_tp_size;
  if (contains(tensor, "q_b_proj") || contains(tensor, "q_proj") || contains(tensor, "kv_b_proj"))
    return world / sizes.attn_tp_size;
  if (contains(tensor, "o_proj")) return world / num_o_proj_ranks(sizes);
  return world;
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
  expect_loads("models/tiny-moe", {}, {.with_mtp = true, .exact_kv_b = true});
}

TEST(Weights, Fp8StaysOrIsWidened) {
  const auto type_of = [](Format format) {
    return load_world(kFp8, {}, {.format = format}).ranks[0].weights.layers[0].attention.o.type;
  };
  EXPECT_EQ(type_of(Format::kAuto), layers::WeightType::kFp8);
  EXPECT_EQ(type_of(Format::kBf16), layers::WeightType::kBf16);
  EXPECT_EQ(type_of(Format::kF32), layers::WeightType::kF32);
  expect_loads(kFp8, {}, {.format = Format::kBf16});
  expect_loads(kFp8, {}, {.format = Format::kF32, .exact_kv_b = true});
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
               {.format = Format::kF32, .exact_kv_b = true});
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

// A copy of ds3-tiny-fp8 with a fault in it; the error of loading it.
class FaultyCheckpoint : public testing::Test {
 protected:
  using Tensors = std::map<std::string, PlainTensor>;

  std::string error_of(const std::function<void(Tensors&)>& spoil) const {
    PlainCheckpoint plain(source_file(kFp8));
    spoil(plain.tensors);
    const TemporaryDirectory directory;
    plain.write_to(directory.path());
    const ModelConfig config = read_model_config(source_file(kFp8));
    const std::string error = user_error([&] { load_world(directory.path(), config, {}, {}); });
    EXPECT_CONTAINS(error, directory.path().string());
    return error;
  }
  static void set_float(PlainTensor& tensor, size_t index, float value) {
    std::memcpy(&tensor.bytes[index * sizeof value], &value, sizeof value);
  }

  const std::string o_proj_ = "model.layers.2.self_attn.o_proj.weight";
  const std::string kv_b_ = "model.layers.1.self_attn.kv_b_proj.weight";
};

TEST_F(FaultyCheckpoint, AnyMissingTensorIsNamed) {
  const PlainCheckpoint plain(source_file(kFp8));
  int i = 0;
  for (const auto& [name, tensor] : plain.tensors) {
    if (++i % 23 != 0) continue;  // each takes a whole copy
    EXPECT_CONTAINS(error_of([&](Tensors& tensors) { tensors.erase(name); }),
                    "tensor '" + name + "' is missing");
  }
}

TEST_F(FaultyCheckpoint, WrongShapesAndTypesAreNamed) {
  EXPECT_CONTAINS(
      error_of([&](Tensors& t) { std::swap(t[o_proj_].shape[0], t[o_proj_].shape[1]); }),
      "tensor '" + o_proj_ + "' has shape [256, 192]; config.json asks for [192, 256]");
  EXPECT_CONTAINS(error_of([&](Tensors& t) {
                    t[o_proj_ + "_scale_inv"].shape = {4, 1};
                  }),
                  "tensor '" + o_proj_ + "_scale_inv' has shape [4, 1]");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t["lm_head.weight"].dtype = "F16"; }),
                  "tensor 'lm_head.weight' has type F16; supported here: BF16, F32, F8_E4M3");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t["model.norm.weight"].dtype = "F16"; }),
                  "tensor 'model.norm.weight' has type F16; supported here: BF16, F32");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t[o_proj_ + "_scale_inv"].dtype = "I32"; }),
                  "tensor '" + o_proj_ + "_scale_inv' has type I32; scales must be F32");
}

TEST_F(FaultyCheckpoint, ScalesThatAreNoScalesAreNamed) {
  for (const float value : {NAN, INFINITY, -INFINITY, -1.0f, 0.0f, 3e38f})
    EXPECT_CONTAINS(
        error_of([&](Tensors& t) { set_float(t[o_proj_ + "_scale_inv"], 2, value); }),
        "tensor '" + o_proj_ + "_scale_inv' holds " + fmt::format("{} at [1, 0]", value));
  EXPECT_CONTAINS(error_of([&](Tensors& t) { set_float(t[kv_b_ + "_scale_inv"], 3, NAN); }),
                  "tensor '" + kv_b_ + "_scale_inv' holds nan at [3, 0]");
}

TEST_F(FaultyCheckpoint, Fp8CodesThatAreNoNumbersAreNamed) {
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t[o_proj_].bytes[191 * 256 + 255] = '\x7f'; }),
                  "tensor '" + o_proj_ + "' holds a NaN at [191, 255]");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t[kv_b_].bytes[70 * 128 + 1] = '\xff'; }),
                  "tensor '" + kv_b_ + "' holds a NaN at [70, 1]");
}

TEST_F(FaultyCheckpoint, PartsOfOneMatrixHaveOneType) {
  const std::string up = "model.layers.0.mlp.up_proj.weight";
  EXPECT_CONTAINS(user_error([&] {
                    const TemporaryDirectory directory;
                    PlainCheckpoint plain(source_file(kFp8));
                    plain.tensors[up].dtype = "BF16";
                    plain.tensors[up].bytes.resize(2 * 320 * 192);
                    plain.write_to(directory.path());
                    WeightLoader loader(directory.path(), read_model_config(source_file(kFp8)),
                                        ParallelLayout({}, read_model_config(source_file(kFp8))),
                                        {});
                  }),
                  "'" + up + "' have types F8_E4M3 and BF16");
}

TEST(Weights, MtpIsRefusedWithoutAModule) {
  EXPECT_CONTAINS(user_error([] { load_world(kFp8, {}, {.with_mtp = true}); }), "next_n");
}

// The shapes of a checkpoint's config.json, made smaller: random weights need no checkpoint.
ModelConfig small_config(const char* checkpoint) {
  ModelConfig config = read_model_config(source_file(checkpoint));
  config.num_hidden_layers = 2;
  config.n_routed_experts = config.gate.num_experts = 4;
  config.num_attention_heads = 4;
  return config;
}

// Random weights by tensor and element, collected over the ranks of a layout.
using Values = std::map<std::string, std::map<std::pair<int64_t, int64_t>, float>>;

Values random_values(const ModelConfig& config, const ParallelSizes& sizes, uint64_t seed) {
  const LoadedWorld world = load_world(
      "/nowhere", config, sizes,
      {.with_ckpt = false, .seed = seed, .with_mtp = config.num_nextn_predict_layers > 0});
  Values values;
  for (int rank = 0; rank < sizes.world_size; ++rank) {
    const auto visit = [&](const HeldElement& element) {
      // The MTP module has the main model's embedding and head, under another name.
      if (contains(element.tensor, "layers.2.embed") ||
          contains(element.tensor, "shared_head.head"))
        return;
      const auto [at, added] =
          values[element.tensor].try_emplace({element.row, element.col}, element.value);
      ASSERT_EQ(at->second, element.value) << element.tensor;
    };
    WeightWalk(config, sizes, rank, visit).model(world.ranks[rank].weights);
  }
  return values;
}

TEST(RandomWeights, AreTheSameInAnyLayout) {
  const ParallelSizes sizes{.world_size = 4,
                            .attn_tp_size = 4,
                            .dense_tp_size = 2,
                            .moe_tp_size = 2,
                            .embed_tp_size = 4,
                            .lmhead_tp_size = 2};
  for (const char* checkpoint : {kBf16, kFp8}) {
    const ModelConfig config = small_config(checkpoint);
    EXPECT_TRUE(random_values(config, {}, 7) == random_values(config, sizes, 7));
  }
}

double correlation(const Values& a, const std::string& a_name, const Values& b,
                   const std::string& b_name) {
  double ab = 0, aa = 0, bb = 0;
  for (const auto& [at, value] : a.at(a_name)) {
    const double other = b.at(b_name).at(at);
    ab += value * other;
    aa += value * value;
    bb += other * other;
  }
  return ab / std::sqrt(aa * bb);
}

TEST(RandomWeights, DependOnSeedAndName) {
  const ModelConfig config = small_config(kBf16);
  const Values one = random_values(config, {}, 1), two = random_values(config, {}, 2);
  const std::string q_a = "model.layers.0.self_attn.q_a_proj.weight";
  EXPECT_LT(std::abs(correlation(one, q_a, two, q_a)), 0.05);
  EXPECT_LT(std::abs(correlation(one, q_a, one, "model.layers.1.self_attn.q_a_proj.weight")), 0.05);
}

TEST(RandomWeights, HaveTheVarianceThatKeepsActivationsNearOne) {
  for (const char* checkpoint : {kBf16, kFp8}) {
    const ModelConfig config = small_config(checkpoint);
    const Values values = random_values(config, {}, 1);
    const auto variance = [&](const char* name) {
      double sum = 0, squares = 0;
      for (const auto& [at, value] : values.at(name)) {
        sum += value;
        squares += double{value} * value;
      }
      const auto count = static_cast<double>(values.at(name).size());
      EXPECT_LT(std::abs(sum / count), 0.05 * std::sqrt(squares / count) + 0.01) << name;
      return squares / count;
    };
    const auto hidden = static_cast<double>(config.hidden_size);
    EXPECT_NEAR(variance("model.layers.0.mlp.up_proj.weight") * hidden, 1, 0.3);
    EXPECT_NEAR(variance("lm_head.weight") * hidden, 1, 0.1);
    EXPECT_NEAR(variance("model.embed_tokens.weight"), 1, 0.1);
    EXPECT_LT(variance("model.layers.1.mlp.gate.e_score_correction_bias"), 0.001);
    for (const auto& [at, value] : values.at("model.norm.weight")) EXPECT_EQ(value, 1);
  }
}

}  // namespace
}  // namespace troupe::model
