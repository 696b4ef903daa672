// model/weight_builder.h: hands out memory for packed weights and fills it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/weight_source.h"
#include "model/weights.h"

namespace troupe::model {

// Rows of a stored tensor that follow each other in a packed matrix.
struct MatrixPart {
  TensorSpec tensor;
  Range rows;
};

struct MatrixSpec {
  std::vector<MatrixPart> parts;  // of equal cols and type
  layers::LeafRange leaves;       // of those cols
};

// Where packed weights go; both null: nowhere, measure only.
struct WeightMemory {
  std::byte* shared = nullptr;
  std::byte* own = nullptr;
  bool reads_only =
      false;  // reads what it would pack, and packs nothing: for a source that listens
};

// One rank's walk over all weights of a model, in one fixed order. The same walk measures (without
// memory) and packs, so that the two cannot disagree.
//
// A weight is cut into `tp_size` shards, and the ranks r with r % tp_size == s hold shard s. With
// several holders the shard lies in the shared segment, each distinct shard once, and every rank
// walks over all of them alike: offsets in the segment, and who packs what, do not depend on the
// rank. A shard with one holder (tp_size == world size) lies in its holder's memory, and only the
// holder visits it. Shards are described by a function of the shard's number.
class WeightBuilder {
 public:
  using Progress = std::function<void(size_t bytes)>;  // another `bytes` are packed
  template <class T>
  using PerShard = std::function<T(int shard)>;

  WeightBuilder(const WeightSource& source, const WeightOptions& options, int world_size,
                int world_rank, WeightMemory memory = {}, Progress progress = nullptr);

  int world_size() const { return world_size_; }
  int world_rank() const { return world_rank_; }
  bool has(std::string_view tensor) const { return source_.has(tensor); }
  bool with_ckpt() const { return options_.with_ckpt; }

  PackedMatrix matrix(int tp_size, const PerShard<MatrixSpec>& shard_spec);
  // As matrix(), in the type of kv_b's parts (WeightOptions::exact).
  PackedMatrix kv_b_part(int tp_size, const PerShard<MatrixPart>& shard_part);
  // The same of the part's transpose: [tensor.cols, part rows].
  PackedMatrix transposed(int tp_size, const PerShard<MatrixPart>& shard_part);
  // Widened to fp32; every rank holds all of it. A tensor of several rows gives one after the
  // other.
  std::span<const float> vector(const TensorSpec& tensor);
  // The same, cut into shards: each shard's tensors one after the other.
  std::span<const float> vector(int tp_size, const PerShard<std::vector<TensorSpec>>& shard_parts);
  Embedding embedding(const TensorSpec& tensor, int tp_size, const PerShard<Range>& shard_rows);

  size_t shared_bytes() const { return shared_bytes_; }
  size_t own_bytes() const { return own_bytes_; }
  size_t packed_bytes() const { return packed_bytes_; }  // that this rank packs, of both
  // Of the shards this rank holds; of shards that differ in size the mean.
  size_t held_bytes() const { return held_bytes_; }

 private:
  layers::WeightType packed_type(const MatrixSpec& spec) const;
  layers::WeightType int8_type(const TensorSpec& tensor) const;
  layers::WeightType kv_b_type() const;
  std::vector<int> visited_shards(int tp_size) const;
  bool holds(int tp_size, int shard) const { return world_rank_ % tp_size == shard; }
  std::byte* take(int tp_size, size_t bytes);
  void take(int tp_size, PackedMatrix& matrix);
  bool packs(int tp_size, int shard, size_t bytes);
  void pack_by_pieces(int tp_size, int shard, int64_t rows, size_t row_bytes,
                      const std::function<void(Range)>& pack);
  void pack_matrix(int tp_size, int shard, const MatrixSpec& spec, PackedMatrix& matrix);
  void pack_piece(const MatrixSpec& spec, Range rows, PackedMatrix& matrix);
  void widen_into(const TensorSpec& tensor, float* out);
  void pack_transposed(const MatrixPart& part, PackedMatrix& matrix);

  const WeightSource& source_;
  const WeightOptions& options_;
  int world_size_;
  int world_rank_;
  WeightMemory memory_;
  Progress progress_;
  RowBuffer buffer_;
  std::vector<size_t> assigned_bytes_;  // [world_size] of the segment, to be packed by each rank
  size_t shared_bytes_ = 0, own_bytes_ = 0, packed_bytes_ = 0, held_bytes_ = 0;
};

}  // namespace troupe::model
