// launcher/bench_routing.h: synthetic routing of MoE tokens, the same as that of the MPI peer.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/process_group.h"

namespace troupe::launcher {

// DeepSeek-R1's exchange: a bf16 row of 7168 goes to 8 of 256 experts.
inline constexpr int kBenchHidden = 7168;
inline constexpr int kBenchExperts = 256;
inline constexpr int kBenchTopk = 8;
inline constexpr int kBenchTokens[] = {1, 8, 64, 512};
inline constexpr int kBenchMoeTokens[] = {1, 8, 64, 512, 4096};

enum class Routing { kUniform, kSkewed };  // equal odds, or Zipf(1.0) with expert 0 the likeliest

// [tokens * kBenchTopk] distinct experts of each token of group rank `rank`, drawn without
// replacement. The generator and seeds are those of bench/peer_mpi_collectives.cc.
std::vector<int32_t> draw_experts(int rank, int tokens, Routing routing);

// [group size] rows that this rank sends to each: a token once to every rank that holds any of its
// experts. Uniform: the same for every pair of ranks, as many in all (rounded up). Collective.
std::vector<int64_t> rows_to_ranks(comm::ProcessGroup& group, int tokens, Routing routing);

// "T=64 uniform"
std::string routing_case(int tokens, Routing routing);

}  // namespace troupe::launcher
