// tests/system/golden.h: a golden checkpoint's reference outputs, and how far a dump is from them.
//
// Every error is in units of what golden.json tolerates: up to 1 is right.
#pragma once

#include "tests/system/jobs.h"

namespace troupe::system_tests {

struct GoldenPrompt {
  std::string id;
  Ids tokens;
  Ids greedy;                // 24 tokens
  int clean_prefix = 0;      // positions before the first whose routing bf16 may change
  int mtp_clean_prefix = 0;  // the same for the MTP layer's slots
  int comparable_steps = 0;  // leading greedy steps that bf16 cannot change
};

class Golden {
 public:
  explicit Golden(const std::string& name);

  const std::vector<GoldenPrompt>& prompts() const { return prompts_; }
  std::vector<Ids> prompt_tokens() const;
  bool has_mtp() const { return has_mtp_; }
  // Main model's and, where there is one, the MTP layer's.
  const std::vector<int>& moe_layers() const { return moe_layers_; }
  // What to dump to compare all of it.
  std::string dump_items() const { return has_mtp_ ? "logits,router,mtp" : "logits,router"; }

  const model::Tensor& tensor(const std::string& name) const;
  double tolerance(const std::string& dtype, const std::string& key) const;

 private:
  json json_;
  model::SafetensorsFile tensors_;
  std::vector<GoldenPrompt> prompts_;
  std::vector<int> moe_layers_;
  bool has_mtp_ = false;
};

struct Excess {
  double logits = 0;
  double mtp_logits = 0;
  double router_weights = 0;  // where the choice of experts agrees
  int misrouted = 0;          // tokens of a layer that chose other experts than the golden

  double worst() const;
};

// Against tolerance.fp32: largest difference and relative L2 error of every position, routing.
// `reference` names the golden's logits: "logits", or a variant of them.
Excess float32_excess(const Golden& golden, const Dump& dump,
                      const std::string& reference = "logits");

// Against tolerance.bf16: rounding alone may send a token with a small router margin to another
// expert. So all positions of the clean prefix count, and of all positions only the median.
Excess bfloat16_excess(const Golden& golden, const Dump& dump,
                       const std::string& reference = "logits");

}  // namespace troupe::system_tests
