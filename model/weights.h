// model/weights.h: the weights of one rank, packed for the kernels; who packs what, and where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "layers/packed_matrix.h"
#include "model/model_config.h"
#include "model/parallel_layout.h"
#include "model/safetensors.h"

namespace troupe::model {

using layers::PackedMatrix;

struct MlaWeights {                 // one layer's; h = this rank's heads
  PackedMatrix q_a;                 // [q_lora, hidden]; rows 0 without q_lora
  std::span<const float> q_a_norm;  // [q_lora]
  PackedMatrix q_b;   // [h (nope + rope), q_lora], or q_proj [.., hidden] without q_lora
  PackedMatrix kv_a;  // [kv_lora + rope, hidden]
  std::span<const float> kv_a_norm;  // [kv_lora]
  std::span<const float>
      ckv_scale;                   // [1], of the latent in an int8 KV cache; empty: each row's own
  std::vector<PackedMatrix> w_uk;  // per head [kv_lora, nope]: absorbs the query (kv_b, transposed)
  std::vector<PackedMatrix> w_uv;  // per head [v, kv_lora]: from latent to value
};

struct GqaWeights {  // one layer's; h = this rank's heads, g = the kv heads they read
  PackedMatrix qkv;  // [(h + 2 g) head_dim, hidden]: queries, keys, values
  std::span<const float> qkv_bias;        // [(h + 2 g) head_dim]; empty without
  std::span<const float> q_norm, k_norm;  // [head_dim]; empty without
  std::span<const float> sinks;           // [h]; empty without
  // [1], of keys and of values in an int8 KV cache; empty: each head's own in each row.
  std::span<const float> k_scale, v_scale;
};

struct AttentionWeights {
  std::optional<MlaWeights> mla;  // one of the two
  std::optional<GqaWeights> gqa;
  PackedMatrix o;                 // [hidden, h v], 16 leaves over all heads' h v
  std::span<const float> o_bias;  // [hidden]; empty without
};

struct MlpWeights {                     // gated MLP of some width w
  PackedMatrix gate_up;                 // [2 w, hidden]: gate rows, then up rows
  std::span<const float> gate_up_bias;  // [2 w]; empty without
  PackedMatrix down;                    // [hidden, w], 16 leaves
};

struct MoeWeights {
  PackedMatrix gate;                   // [experts, hidden]
  std::span<const float> router_bias;  // [experts], added to its logits; empty without
  std::span<const float> gate_bias;    // [experts], which steers the choice; empty without
  // [experts * hidden] of all ranks' experts: whoever sums the experts' parts adds it to each, as
  // no rank may hold all parts of an expert. Empty without.
  std::span<const float> down_bias;
  std::vector<MlpWeights> experts;  // this rank's physical ones, in order
  std::optional<MlpWeights> shared;
};

struct LayerWeights {
  std::span<const float> input_norm, post_attention_norm;  // [hidden]
  AttentionWeights attention;
  std::optional<MlpWeights> dense;  // one of the two
  std::optional<MoeWeights> moe;
  size_t bytes = 0;  // of all these
};

// A lookup table: rows in their stored type.
struct Embedding {
  Dtype dtype = Dtype::kBf16;       // kF32 or kBf16
  const std::byte* rows = nullptr;  // [vocab_rows, hidden]
  Range vocab;                      // which rows
};

struct MtpWeights {
  Embedding embed;
  std::span<const float> enorm, hnorm;  // [hidden]
  PackedMatrix eh_proj;                 // [hidden, 2 hidden]: embedding half first
  LayerWeights layer;
  std::span<const float> head_norm;  // shared_head.norm [hidden]
  PackedMatrix head;                 // shared_head.head [vocab, hidden]
};

struct ModelWeights {
  Embedding embed;
  std::vector<LayerWeights> layers;   // num_hidden_layers
  std::span<const float> final_norm;  // [hidden]
  PackedMatrix lm_head;               // [vocab columns, hidden]
  std::optional<MtpWeights> mtp;      // only when asked for (next_n > 0, or a dump of its logits)
};

struct WeightOptions {
  bool with_ckpt = true;  // false: random values, a function of (seed, tensor name, element)
  uint64_t seed = 0;
  bool with_mtp = false;
  // How linears are kept. kAuto: as they are stored. kBf16, kF32: fp8 and MXFP4 ones are widened
  // (kBf16 rounds fp8). kInt8, kInt4, kMxfp4: all but the router's gate are quantised
  // (layers/quantize.h).
  enum class Format { kAuto, kBf16, kF32, kInt8, kInt4, kMxfp4 } format = Format::kAuto;
  // For dtype float32, which rounds nothing. kv_b is kept in two parts per head, one of them
  // transposed: exact in fp32; else int8 where linears are quantised, and bf16 where they are not.
  // MXFP4 matrices are products of fp32 and bf16 under kAuto; else codes stay codes, and inputs are
  // quantised to int8.
  bool exact = false;
};

// Reads the weights of one rank. The same class plans (sizes only) and loads.
//
// A tensor that several ranks hold in the same way (norms, gate, data-parallel attention,
// embeddings, shared experts) lies once in the shared segment: its holders divide the packing among
// themselves and all map it. What only one rank holds lies in its private memory. The order in
// which items are visited, and so every offset, is a function of config and layout alone.
class WeightLoader {
 public:
  // Opens the checkpoint, or one split for this layout (model/split.h); none without with_ckpt.
  // Checks that every tensor of the family is there with the right shape and type: UserError names
  // the first that is not. Reads no data.
  WeightLoader(const std::filesystem::path& directory, const ModelConfig& config,
               const ParallelLayout& layout, const WeightOptions& options);
  ~WeightLoader();

  size_t shared_bytes() const;  // of the segment that all ranks map
  size_t private_bytes(int world_rank) const;
  size_t mapped_bytes() const;  // address space that files take while a rank loads
  // That rank's weights without memory: every matrix' type and shape, null pointers.
  ModelWeights describe(int world_rank) const;
  // Of what this rank holds of each decoder layer, privately or shared; last the MTP module's.
  std::vector<size_t> layer_bytes(int world_rank) const;

  // Packs this rank's private tensors and its part of the shared ones. `shared` is the segment,
  // mapped writable, shared_bytes() long; after all ranks' load() (the caller waits for them) it is
  // complete. progress(done, total) is called now and then with this rank's bytes.
  // The result points into `shared` and into memory it owns itself. Throws UserError naming tensor
  // and element when an fp8 code or scale is no number. Ranks may load at the same time.
  struct Loaded {
    ModelWeights weights;
    Mapping private_memory;
  };
  Loaded load(int world_rank, std::byte* shared,
              const std::function<void(size_t done, size_t total)>& progress) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::model
