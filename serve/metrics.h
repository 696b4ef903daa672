// serve/metrics.h: what the server counts, in the text form of Prometheus.
//
// Names after the first word, units and buckets are those of vLLM (vllm/v1/metrics/loggers.py), so
// its dashboards work with the prefix changed.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "actors/request.h"
#include "actors/scheduler.h"

namespace troupe::serve {

// Counts of values up to each bound, as Prometheus wants them.
class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds)
      : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1, 0) {}
  void add(double value, int64_t times = 1);
  // `labels` inside the braces, "model_name=\"m\"".
  std::string text(const std::string& name, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // [bounds + 1], each not counting the one before
  double sum_ = 0;
  int64_t count_ = 0;
};

// Written by the engine's thread, read by any.
class Metrics {
 public:
  Metrics();

  void on_first_token(double ttft_s);
  // `tokens` more after `seconds`: a step with drafts makes several at once.
  void on_more_tokens(double seconds, int64_t tokens);
  void on_end(const actors::Completion& completion, int64_t prompt_tokens);
  void on_refused();  // for a full queue
  void on_step(const actors::StepStatistics& statistics, const actors::SchedulerState& state);

  std::string text(const std::string& model_name) const;
  struct Totals {
    actors::StepStatistics steps;
    actors::SchedulerState now;
    int64_t generation_tokens = 0, prompt_tokens = 0, requests = 0;
  };
  Totals totals() const;

 private:
  mutable std::mutex mutex_;
  Histogram ttft_, inter_token_, per_output_token_, end_to_end_, queue_, prompt_length_,
      answer_length_;
  std::map<actors::FinishReason, int64_t> ended_;
  int64_t refused_ = 0;
  Totals totals_;
};

}  // namespace troupe::serve
