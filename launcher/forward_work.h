// launcher/forward_work.h: what a forward reads and computes at least, from shapes and routing: the
// work that a roofline divides by.
//
// Counted are the weights (each matrix that is used once per rank that holds and uses it, an expert
// once if any row chose it), the KV rows that attention sees, and the multiplications and additions
// of products and attention. Not counted: activations, norms, sampling, messages.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "comm/trace.h"
#include "launcher/config.h"
#include "layers/peak.h"
#include "model/model_config.h"
#include "model/weights.h"

namespace troupe::launcher {

// Sums over all ranks.
struct Work {
  double weight_bytes = 0;
  double kv_bytes = 0;
  std::array<double, layers::kNumArithmetics> operations{};  // by layers::Arithmetic

  double gflop() const;
  void add(const Work& other);
  void scale(double factor);
};

// By the operation that does it, as traces name them.
using OperationWorks = std::map<comm::TraceOp, Work>;

// `sequences` of `rows` tokens each, the first at `first_position`; one row of each is sampled.
struct ForwardShape {
  int sequences = 1;
  int64_t rows = 1;
  int64_t first_position = 0;
  double experts_touched = 0;  // distinct experts that some row chose, summed over the MoE layers
};

// Of models with MLA, without drafts: the MTP layer is left out.
class ForwardWork {
 public:
  // Plans the weights as a launch would: the errors of model::WeightLoader. CHECKs is_known().
  ForwardWork(const Config& config, const model::ModelConfig& model);

  static bool is_known(const Config& config, const model::ModelConfig& model) {
    return config.model.next_n == 0 && model.num_key_value_heads == 0;
  }

  OperationWorks by_operation(const ForwardShape& shape) const;
  Work of(const ForwardShape& shape) const;  // their sum

 private:
  double rows_of_group(const ForwardShape& shape, int rank, int tp_size) const;
  void add(const layers::PackedMatrix& matrix, double rows, Work& work) const;
  void add(const model::MlpWeights& mlp, double rows, Work& work) const;
  void add_attention(const model::AttentionWeights& weights, double own_rows, double o_rows,
                     OperationWorks& works) const;
  void add_experts(const ForwardShape& shape, Work& work) const;
  void add_cache_reads(const ForwardShape& shape, Work& work) const;
  layers::Arithmetic arithmetic(layers::WeightType type) const;

  const Config& config_;
  const model::ModelConfig& model_;
  std::vector<model::ModelWeights> ranks_;
};

}  // namespace troupe::launcher
