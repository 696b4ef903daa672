// `troupe bench moe`: how long a round of MoE dispatch and combine takes at DeepSeek-R1's shape,
// beside the "moe round" of bench/peer_mpi_collectives.cc.
//
// What a round is here: dispatch, an expert stand-in, combine, reading the answers. The stand-in
// copies each row that arrived from another rank out of the window and back to where its result
// goes; the asking rank copies each answer out. So every byte between ranks is written and read
// once in each direction, as MPI does it, though an expert of the real program reads and writes the
// same places as part of its work. Own rows stay in place (MPI copies them). Counts travel with the
// rows. `bytes` is what the busiest rank gets in both directions, its own rows included, as there.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>

#include "base/bf16.h"
#include "base/error.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "launcher/bench_command.h"
#include "launcher/bench_routing.h"
#include "launcher/bench_rows.h"

namespace troupe::launcher {
namespace {

constexpr size_t kRowBytes = kBenchHidden * sizeof(Bf16);

struct MoeArguments : BenchArguments {
  std::vector<int> tokens;  // --tokens, empty: those of Op
  // --moe-chunk-max-len. Bounded, since double routing keeps a copy of a row for each of its
  // experts at each step.
  int chunk_max_len = 512;
};

// [tokens * kBenchTopk] experts such that each rank gets `rows` of the tokens, spread evenly.
std::vector<int32_t> spread_experts(int tokens, int64_t rows, int num_ranks) {
  std::vector<std::vector<int>> ranks(tokens);
  int64_t next = 0;
  for (int rank = 0; rank < num_ranks; ++rank)
    for (int64_t i = 0; i < rows; ++i) ranks[next++ % tokens].push_back(rank);
  const int local_experts = kBenchExperts / num_ranks;
  std::vector<int32_t> experts;
  for (int token = 0; token < tokens; ++token) {
    const auto visited = static_cast<int>(ranks[token].size());
    if (visited < 1 || visited > kBenchTopk)
      throw_user_error(
          "bench moe: {} tokens with {} experts each cannot bring equally many rows to {} ranks",
          tokens, kBenchTopk, num_ranks);
    for (int j = 0; j < kBenchTopk; ++j)
      experts.push_back(ranks[token][j % visited] * local_experts +
                        (token * kBenchTopk + j) % local_experts);
  }
  return experts;
}

// A round of one number of tokens, the same each time.
class MoeRound {
 public:
  MoeRound(comm::ProcessGroup& group, comm::MoeExchange& exchange, int tokens, Routing routing)
      : group_(group), exchange_(exchange), rows_(tokens * kRowBytes), scratch_(kRowBytes) {
    experts_ = routing == Routing::kSkewed
                   ? draw_experts(group.rank(), tokens, routing)
                   : spread_experts(tokens, rows_to_ranks(group, tokens, routing)[0], group.size());
    weights_.resize(experts_.size(), 1.0f);
    for (size_t i = 0; i < rows_.size(); ++i)
      rows_[i] = std::byte(i * 7 + i / kRowBytes + group.rank() * 31);
  }

  void run() {
    comm::MoeExchange::Tokens tokens{.rows = rows_.data(),
                                     .row_stride = kRowBytes,
                                     .count = static_cast<int64_t>(rows_.size() / kRowBytes),
                                     .topk_ids = experts_,
                                     .weights = weights_};
    do {
      exchange_.start_dispatch(tokens);
      exchange_.finish_dispatch();
      serve();
      exchange_.start_combine();
      exchange_.finish_combine();
      read_answers(tokens, exchange_.taken());
      exchange_.release();
      tokens = tokens.from(exchange_.taken(), kBenchTopk);
    } while (exchange_.more());
  }

  // The same with a look at every answer.
  void check() {
    arrived_ = results_ = 0;
    checking_ = true;
    run();
    checking_ = false;
  }

  // Of the busiest rank, as counted by check(). Collective.
  double bytes() const {
    const int64_t mine = (arrived_ + results_) * static_cast<int64_t>(kRowBytes);
    std::vector<int64_t> of_all(group_.size());
    group_.all_gather(std::as_bytes(std::span(&mine, 1)),
                      std::as_writable_bytes(std::span(of_all)));
    return static_cast<double>(*std::max_element(of_all.begin(), of_all.end()));
  }

 private:
  bool per_rank() const { return exchange_.shape().answer == comm::Answer::kPerRank; }

  void serve() {
    const int64_t results = exchange_.first_result(group_.size());
    if (checking_) {
      results_ += results;
      arrived_ += arrived_rows();
    }
    served_.assign(results, false);
    for (int e = 0; e < exchange_.num_local_experts(); ++e)
      for (const comm::MoeExchange::Arrival& arrival : exchange_.arrivals(e)) {
        const int64_t result = exchange_.first_result(arrival.source) + arrival.result_slot;
        if (served_[result] || (arrival.source == group_.rank() && !checking_)) continue;
        served_[result] = true;
        std::memcpy(scratch_.data(), arrival.row, kRowBytes);
        std::memcpy(exchange_.result_row(arrival), scratch_.data(), kRowBytes);
      }
  }

  // One for each token that has an expert here.
  int64_t arrived_rows() {
    if (per_rank()) return exchange_.first_result(group_.size());
    rows_seen_.clear();
    for (int e = 0; e < exchange_.num_local_experts(); ++e)
      for (const comm::MoeExchange::Arrival& arrival : exchange_.arrivals(e))
        rows_seen_.push_back(arrival.row);
    std::sort(rows_seen_.begin(), rows_seen_.end());
    return std::unique(rows_seen_.begin(), rows_seen_.end()) - rows_seen_.begin();
  }

  void read_answers(const comm::MoeExchange::Tokens& tokens, int64_t taken) {
    for (int64_t token = 0; token < taken; ++token)
      for (int i = 0; i < exchange_.num_answers(token); ++i) {
        const std::byte* answer = exchange_.answer(token, i);
        std::memcpy(scratch_.data(), answer, kRowBytes);
        if (checking_)
          TROUPE_CHECK(std::memcmp(answer, tokens.rows + token * tokens.row_stride, kRowBytes) == 0,
                       "token {} got another row back", token);
      }
  }

  comm::ProcessGroup& group_;
  comm::MoeExchange& exchange_;
  std::vector<std::byte> rows_, scratch_;
  std::vector<int32_t> experts_;
  std::vector<float> weights_;
  std::vector<bool> served_;
  std::vector<const std::byte*> rows_seen_;
  bool checking_ = false;
  int64_t arrived_ = 0, results_ = 0;
};

struct Op {
  const char* name;
  comm::Answer answer;
  bool double_routing;
  std::span<const int> tokens;  // unless --tokens says others
};

// One bf16 row per (token, rank) both ways; one per (token, expert) back; the same by sorting rows
// around all_to_all_v. The longest batch in the first form alone: the others take a minute for it.
constexpr Op kOps[] = {{"moe round", comm::Answer::kPerRank, false, kBenchMoeTokens},
                       {"moe round exact", comm::Answer::kPerExpert, false, kBenchTokens},
                       {"moe round double", comm::Answer::kPerExpert, true, kBenchTokens}};

std::vector<Op> chosen_ops(const std::vector<std::string>& names) {
  std::vector<Op> chosen;
  for (const std::string& name : names) {
    const size_t before = chosen.size();
    for (const Op& op : kOps)
      if (name == "all" || name == op.name) chosen.push_back(op);
    if (chosen.size() == before)
      throw_user_error("bench moe --ops: {} is unknown; write all, {}, {} or {}", name,
                       kOps[0].name, kOps[1].name, kOps[2].name);
  }
  return chosen;
}

std::unique_ptr<comm::MoeExchange> make_exchange(comm::ProcessGroup& group, const Op& op,
                                                 int max_tokens) {
  const comm::MoeExchangeShape shape{.num_experts = kBenchExperts,
                                     .topk = kBenchTopk,
                                     .row_bytes = kRowBytes,
                                     .result_bytes = kRowBytes,
                                     .max_tokens = max_tokens,
                                     .answer = op.answer};
  if (op.double_routing) return std::make_unique<comm::DoubleRouting>(group, shape);
  return std::make_unique<comm::FusedExchange>(group, shape);
}

// The rows of one rank; rank 0 reports them.
void bench_rank(comm::Communicator& communicator, const std::vector<Op>& ops,
                const MoeArguments& arguments, std::string& report) {
  std::vector<int> ranks(communicator.world_size());
  std::iota(ranks.begin(), ranks.end(), 0);
  comm::ProcessGroup group(communicator, 0, ranks);
  for (const Op& op : ops)
    for (const int tokens :
         arguments.tokens.empty() ? op.tokens : std::span<const int>(arguments.tokens))
      for (const Routing routing : {Routing::kUniform, Routing::kSkewed}) {
        const auto exchange = make_exchange(group, op, std::min(tokens, arguments.chunk_max_len));
        MoeRound round(group, *exchange, tokens, routing);
        round.check();
        const double bytes = round.bytes();
        const BenchTimes times = measure_collective(group, arguments.seconds, [&] { round.run(); });
        append_row(report, {.op = op.name,
                            .ranks = group.size(),
                            .op_case = routing_case(tokens, routing),
                            .bytes = bytes,
                            .times = times});
      }
}

void require_shapes(const MoeArguments& arguments) {
  constexpr int kMaxTokens = 4096;
  for (const int count : arguments.ranks)
    if (count < 1 || kBenchExperts % count != 0)
      throw_user_error("bench moe --ranks: {} does not divide {} experts", count, kBenchExperts);
  for (const int tokens : arguments.tokens)
    if (tokens < 1 || tokens > kMaxTokens)
      throw_user_error("bench moe --tokens: {} is not in 1 .. {}", tokens, kMaxTokens);
  if (arguments.chunk_max_len < 1 || arguments.chunk_max_len > kMaxTokens)
    throw_user_error("bench moe --moe-chunk-max-len: {} is not in 1 .. {}", arguments.chunk_max_len,
                     kMaxTokens);
}

}  // namespace

void add_bench_moe(CLI::App& bench) {
  CLI::App* command =
      bench.add_subcommand("moe", "MoE dispatch and combine between rank processes");
  const auto arguments = std::make_shared<MoeArguments>();
  add_bench_options(*command, *arguments);
  command
      ->add_option("--tokens", arguments->tokens,
                   "tokens of each rank (default: 1,8,64,512, and 4096 in \"moe round\")")
      ->delimiter(',');
  command
      ->add_option("--moe-chunk-max-len", arguments->chunk_max_len,
                   "tokens of a rank in one round, more take several")
      ->capture_default_str();
  command->callback([arguments] {
    const auto ops = chosen_ops(arguments->ops);
    require_shapes(*arguments);
    run_bench(*arguments, [&](comm::Communicator& communicator, std::string& report) {
      bench_rank(communicator, ops, *arguments, report);
    });
  });
}

}  // namespace troupe::launcher
