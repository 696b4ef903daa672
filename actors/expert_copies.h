// actors/expert_copies.h: to which copy of an expert a token goes (model/expert_placement.h).
//
// An expert's copies take tokens in turn. Which turn a token has follows from the plan alone (step,
// rank, row), and every copy makes the same bits of a row, so nothing depends on the choice.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model_config.h"
#include "model/parallel_layout.h"

namespace troupe::actors {

class ExpertCopies {
 public:
  ExpertCopies(const model::ParallelLayout& layout, const model::ModelConfig& config);

  // Without a placement: logical and physical ids are the same.
  bool empty() const { return layers_.empty(); }

  // turn >= 0
  int32_t physical(int layer, int32_t expert, int64_t turn) const {
    const Layer& copies = layers_[layer];
    const int32_t first = copies.first[expert], count = copies.first[expert + 1] - first;
    return copies.ids[first + turn % count];
  }

 private:
  struct Layer {
    std::vector<int32_t> first;  // [experts + 1] into ids
    std::vector<int32_t> ids;    // physical ones, by logical expert
  };
  std::vector<Layer> layers_;  // by layer index
};

}  // namespace troupe::actors
