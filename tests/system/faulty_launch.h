// tests/system/faulty_launch.h: a short run with faults on request, from its start to what it
// leaves.
#pragma once

#include <fmt/format.h>

#include <optional>

#include "tests/system/jobs.h"

namespace troupe::system_tests {

inline constexpr int kWorldSize = 4;

// A short run with every kind of collective that a layout has: attention, experts, dense layers and
// logits are all cut.
inline json small_job() {
  json config = configuration(tiny_moe(), kWorldSize, "bfloat16");
  config["model_config"]["next_n"] = 1;
  config["parallel_config"]["attn_tp_size"] = 2;
  config["parallel_config"]["dense_tp_size"] = 2;
  config["parallel_config"]["moe_tp_size"] = 2;
  config["parallel_config"]["embed_tp_size"] = 2;
  config["parallel_config"]["lmhead_tp_size"] = 4;
  config["scheduler_config"]["max_new_tokens"] = 24;
  config["scheduler_config"]["batch_size"] = 2;
  return config;
}

// A launch with faults, from its start to what it leaves.
class FaultyLaunch {
 public:
  explicit FaultyLaunch(const std::vector<std::string>& faults, json config = small_job(),
                        const std::vector<std::string>& options = {}) {
    config["runtime_config"]["dump_dir"] = dumps_.path();
    auto words = command_line("run", config, {{1, 2, 3}, {4, 5}}, input_);
    words.push_back("--ignore-eos");
    for (const std::string& fault : faults) words.insert(words.end(), {"--inject", fault});
    words.insert(words.end(), options.begin(), options.end());
    process_.emplace(words);
  }

  TroupeProcess& process() { return *process_; }
  void wait() { ended_ = process_->wait(); }
  const Ended& ended() const { return ended_; }
  std::string last_line() const {
    return ended_.error_lines().empty() ? "" : ended_.error_lines().back();
  }
  json dump() const {
    const std::vector<std::filesystem::path> files(
        std::filesystem::directory_iterator(dumps_.path()), {});
    if (files.size() != 1)
      throw std::runtime_error(fmt::format("{} dumps: {}", files.size(), ended_.err));
    return json::parse(model::read_file(files[0]));
  }
  bool left_nothing() const {
    return process_->processes().empty() &&
           std::filesystem::is_empty(process_->temporary_directory());
  }

 private:
  model::TemporaryDirectory input_, dumps_;
  std::optional<TroupeProcess> process_;
  Ended ended_;
};

// "rank 2 (pid 17, DP 1, TP 0, EP 1, ETP 0)"
inline std::string rank_pattern(int rank) {
  return fmt::format("rank {} \\(pid [0-9]+, DP {}, TP {}, EP {}, ETP {}\\)", rank, rank / 2,
                     rank % 2, rank / 2, rank % 2);
}

// As in /proc/PID/status: R, S, T, ...
inline char process_state(int pid) {
  const std::string status = proc_file(pid, "status"), key = "\nState:\t";
  const size_t found = status.find(key);
  return found == std::string::npos ? '?' : status[found + key.size()];
}

}  // namespace troupe::system_tests
