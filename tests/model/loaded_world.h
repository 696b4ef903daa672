// tests/model/loaded_world.h: the weights of all ranks of a layout.
#pragma once

#include <vector>

#include "model/weights.h"
#include "tests/model/files.h"

namespace troupe::model {

// All ranks of a layout, loaded one after the other, over one shared segment.
struct LoadedWorld {
  Mapping shared;
  std::vector<WeightLoader::Loaded> ranks;
};

inline LoadedWorld load_world(const std::filesystem::path& directory, const ModelConfig& config,
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

inline LoadedWorld load_world(const char* checkpoint, const ParallelSizes& sizes,
                              const WeightOptions& options, bool last_rank_first = false) {
  const std::filesystem::path directory = source_file(checkpoint);
  return load_world(directory, read_model_config(directory), sizes, options, last_rank_first);
}

}  // namespace troupe::model
