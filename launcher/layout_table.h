// launcher/layout_table.h: a layout for people: who is grouped with whom, who holds what.
#pragma once

#include <string>

#include "launcher/rank_memory.h"
#include "model/model_config.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

std::string bytes_text(double bytes);  // "1.50 GiB", "12.0 KiB", "28 B"

// "0: 1.5 MiB, 1-5: 612.0 KiB": neighbours with the same bytes in one.
std::string layers_text(const std::vector<size_t>& layer_bytes);

// "[0-3] [4-7]", "[0,4] [1,5] [2,6] [3,7]"; of many groups the first two and the last.
std::string groups_text(const std::vector<std::vector<int>>& groups);

// One line for each axis: size, groups of ranks, and what one rank of a group holds.
std::string axis_table(const model::ModelConfig& model, const model::ParallelLayout& layout);

// Ranks side by side, stages below each other: which part each rank holds; bars enclose the ranks
// that cut a stage between them. Of many ranks the first.
std::string layout_picture(const model::ModelConfig& model, const model::ParallelLayout& layout);

// One line for each rank, of many the first and the last.
std::string rank_table(const model::ModelConfig& model, const model::ParallelLayout& layout,
                       const LaunchMemory& memory);

}  // namespace troupe::launcher
