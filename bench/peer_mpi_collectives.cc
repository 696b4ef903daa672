// bench/peer_mpi_collectives.cc: the collectives of an MoE rank group over MPI, on one host: the
// peer of `troupe bench collectives` and `troupe bench moe`, row by row.
//
//   mpirun -np 2 --mca pml ob1 --mca btl self,vader peer_mpi_collectives [SECONDS] [OPS]
//
// SECONDS a row (0.3); OPS: all, or names of the first column separated by commas
//
// Measured as bench/peer_rows.h says. Bandwidths and the routing of the MoE exchange are those of
// launcher/bench_collectives.cc and launcher/bench_routing.h. A "moe round" is the exchange of
// counts, the dispatch and the combine (the transposed alltoallv), one bf16 row per (token, rank)
// both ways. Built where MPI is installed; nothing else uses MPI.
#include <mpi.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "peer_rows.h"

namespace {

int rank_, size_;

float to_float(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

void sum_bf16(void* in, void* in_out, int* length, MPI_Datatype*) {
  const auto* a = static_cast<const uint16_t*>(in);
  auto* b = static_cast<uint16_t*>(in_out);
  int i = 0;
#ifdef __AVX512BF16__
  const auto widened = [](const uint16_t* x) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  };
  for (; i + 16 <= *length; i += 16) {
    const __m256bh sum = _mm512_cvtneps_pbh(_mm512_add_ps(widened(a + i), widened(b + i)));
    std::memcpy(b + i, &sum, sizeof(sum));
  }
#endif
  for (; i < *length; ++i) b[i] = to_bf16(to_float(a[i]) + to_float(b[i]));
}

constexpr int kHidden = 7168, kExperts = 256, kTopk = 8;
constexpr int kTokens[] = {1, 8, 64, 512, 4096};
constexpr int kMostExchangedTokens = 512;  // of the alltoallv rows; "moe round" has all

// Rows to each rank; see rows_to_ranks in launcher/bench_routing.h.
std::vector<int> rows_to_ranks(int tokens, bool skewed) {
  std::vector<int> rows(size_);
  const int experts_per_rank = (kExperts + size_ - 1) / size_;
  std::mt19937 generator(1234 + rank_ * 77 + tokens);
  long mine = 0;
  for (int t = 0; t < tokens; ++t) {
    std::vector<std::pair<double, int>> waiting(kExperts);
    std::uniform_real_distribution<double> uniform(1e-12, 1);
    for (int e = 0; e < kExperts; ++e)
      waiting[e] = {-std::log(uniform(generator)) / (skewed ? 1.0 / (1 + e) : 1.0), e};
    std::partial_sort(waiting.begin(), waiting.begin() + kTopk, waiting.end());
    std::vector<bool> hit(size_);
    for (int k = 0; k < kTopk; ++k) hit[waiting[k].second / experts_per_rank] = true;
    for (int r = 0; r < size_; ++r) {
      rows[r] += hit[r];
      mine += hit[r];
    }
  }
  if (!skewed) {
    long total;
    MPI_Allreduce(&mine, &total, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    const long pairs = static_cast<long>(size_) * size_;
    std::fill(rows.begin(), rows.end(), static_cast<int>((total + pairs - 1) / pairs));
  }
  return rows;
}

// Whether this machine has twice the memory that all ranks want, `bytes` this one.
bool fits_memory(size_t bytes) {
  uint64_t all = bytes, total = 0;
  MPI_Allreduce(&all, &total, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  int fits = 2 * total < page * static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES));
  MPI_Bcast(&fits, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return fits != 0;
}

void moe_rows(const peer::Rows& rows, int tokens, bool skewed) {
  std::vector<int> sent = rows_to_ranks(tokens, skewed), received(size_);
  MPI_Alltoall(sent.data(), 1, MPI_INT, received.data(), 1, MPI_INT, MPI_COMM_WORLD);
  std::vector<int> send(size_), receive(size_), send_displs(size_), receive_displs(size_);
  long out_rows = 0, in_rows = 0, most;
  for (int r = 0; r < size_; ++r) {
    send[r] = sent[r] * kHidden;
    receive[r] = received[r] * kHidden;
    send_displs[r] = static_cast<int>(out_rows * kHidden);
    receive_displs[r] = static_cast<int>(in_rows * kHidden);
    out_rows += sent[r];
    in_rows += received[r];
  }
  MPI_Allreduce(&in_rows, &most, 1, MPI_LONG, MPI_MAX, MPI_COMM_WORLD);
  if (!fits_memory((out_rows + in_rows) * kHidden * sizeof(uint16_t))) {
    if (rank_ == 0) std::fprintf(stderr, "T=%d is left out: too little memory\n", tokens);
    return;
  }
  std::vector<uint16_t> out(std::max(out_rows, 1L) * kHidden, 1),
      in(std::max(in_rows, 1L) * kHidden);
  char op_case[32];
  std::snprintf(op_case, sizeof(op_case), "T=%d %s", tokens, skewed ? "skewed" : "uniform");
  const auto dispatch = [&] {
    MPI_Alltoallv(out.data(), send.data(), send_displs.data(), MPI_UINT16_T, in.data(),
                  receive.data(), receive_displs.data(), MPI_UINT16_T, MPI_COMM_WORLD);
  };
  const size_t bytes = static_cast<size_t>(most) * kHidden * sizeof(uint16_t);
  if (tokens <= kMostExchangedTokens) rows.add("alltoallv", op_case, bytes, dispatch);
  rows.add("moe round", op_case, 2 * bytes, [&] {
    MPI_Alltoall(sent.data(), 1, MPI_INT, received.data(), 1, MPI_INT, MPI_COMM_WORLD);
    dispatch();
    MPI_Alltoallv(in.data(), receive.data(), receive_displs.data(), MPI_UINT16_T, out.data(),
                  send.data(), send_displs.data(), MPI_UINT16_T, MPI_COMM_WORLD);
  });
}

void reduction_rows(const peer::Rows& rows) {
  MPI_Op bf16_sum;
  MPI_Op_create(sum_bf16, 1, &bf16_sum);
  std::vector<char> in(16u << 20), out(16u << 20);
  for (const size_t bytes : peer::kReduced)
    rows.add("allreduce fp32", "", bytes, [&] {
      MPI_Allreduce(in.data(), out.data(), static_cast<int>(bytes / 4), MPI_FLOAT, MPI_SUM,
                    MPI_COMM_WORLD);
    });
  for (const size_t bytes : peer::kReduced)
    rows.add("allreduce bf16", "user op", bytes, [&] {
      MPI_Allreduce(in.data(), out.data(), static_cast<int>(bytes / 2), MPI_UINT16_T, bf16_sum,
                    MPI_COMM_WORLD);
    });
  for (const size_t bytes : peer::kReduced)
    rows.add("broadcast", "", bytes,
             [&] { MPI_Bcast(in.data(), static_cast<int>(bytes), MPI_BYTE, 0, MPI_COMM_WORLD); });
  for (const size_t bytes : peer::kReduced) {
    const size_t part = bytes / 4 / size_;
    rows.add("reduce_scatter fp32", "", part * size_ * 4, [&] {
      MPI_Reduce_scatter_block(in.data(), out.data(), static_cast<int>(part), MPI_FLOAT, MPI_SUM,
                               MPI_COMM_WORLD);
    });
  }
  MPI_Op_free(&bf16_sum);
}

void gather_rows(const peer::Rows& rows) {
  for (const size_t bytes : peer::kGathered) {
    std::vector<char> in(bytes * size_), out(bytes * size_);
    const int count = static_cast<int>(bytes);
    rows.add("allgather", rows.per_rank(bytes), out.size(), [&] {
      MPI_Allgather(in.data(), count, MPI_BYTE, out.data(), count, MPI_BYTE, MPI_COMM_WORLD);
    });
    rows.add("alltoall", rows.per_rank(bytes), out.size(), [&] {
      MPI_Alltoall(in.data(), count, MPI_BYTE, out.data(), count, MPI_BYTE, MPI_COMM_WORLD);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  const peer::Rows::Library library{.barrier = [] { MPI_Barrier(MPI_COMM_WORLD); },
                                    .maximum =
                                        [](std::vector<double>& values) {
                                          MPI_Allreduce(MPI_IN_PLACE, values.data(),
                                                        static_cast<int>(values.size()), MPI_DOUBLE,
                                                        MPI_MAX, MPI_COMM_WORLD);
                                        }};
  const peer::Rows rows(rank_, size_, library, argc > 1 ? std::atof(argv[1]) : 0.3,
                        argc > 2 ? argv[2] : "all");
  rows.add("barrier", "", 0, library.barrier);
  reduction_rows(rows);
  gather_rows(rows);
  for (const int tokens : kTokens)
    for (const bool skewed : {false, true})
      if (rows.wants("moe round") || (rows.wants("alltoallv") && tokens <= kMostExchangedTokens))
        moe_rows(rows, tokens, skewed);
  MPI_Finalize();
}
