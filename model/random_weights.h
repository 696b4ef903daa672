// model/random_weights.h: made-up weights of the right shapes, for runs without a checkpoint.
#pragma once

#include "model/weight_source.h"

namespace troupe::model {

// Every element is a function of (seed, tensor name, its index in the tensor) alone, so that a
// model has the same weights whatever ranks hold them. Variances are chosen so that activations
// stay near 1: matrices 1 / inputs, embeddings 1, norms are 1, biases small. Linears are fp8 with
// scales when `fp8` is set, biases F32, all else is bf16 (MXFP4 experts too).
class RandomSource final : public WeightSource {
 public:
  RandomSource(uint64_t seed, bool fp8);

  // The tensors that a checkpoint may leave out (the MTP module's copies) are left out.
  bool has(std::string_view) const override { return false; }
  Dtype type(const TensorSpec& tensor) const override;
  bool has_codes(const TensorSpec&) const override { return true; }
  layers::SourceRows read(const TensorSpec& tensor, Range rows, Range cols,
                          RowBuffer& buffer) const override;

 private:
  // Elements [first, first + count) of the stored tensor.
  void fill_rows(const TensorSpec& tensor, int64_t first, int64_t count, std::byte* out) const;
  void fill_scales(const TensorSpec& tensor, std::vector<float>& scales) const;

  uint64_t seed_;
  bool fp8_;
};

}  // namespace troupe::model
