// tests/system/layout_case.h: a model on a layout against the same model on one rank.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/system/layouts.h"

namespace troupe::system_tests {

struct LayoutCase {
  json config;  // of one rank
  std::vector<Ids> prompts;
  bool has_mtp = false;

  std::string dump_items() const { return has_mtp ? "logits,router,mtp" : "logits,router"; }
};

LayoutCase tiny_moe_case(const std::string& dtype, const std::string& weight_format = "auto");
LayoutCase golden_case(const std::string& golden, const std::string& dtype);
// Random weights, float32 or bfloat16, of the config.json in `directory`.
LayoutCase random_weights_case(const std::filesystem::path& directory, const std::string& dtype);

// What one rank makes of a case.
class OneRank {
 public:
  explicit OneRank(LayoutCase layout_case);

  // Tensors of the score dump that are not the same bits on the layout.
  std::vector<std::string> differing_tensors(const Layout& layout) const;
  // Whether `next_n` drafts (odd: tokens are sampled, even: the most likely) yield the same tokens
  // on the layout as one rank without drafts whose exe_mode is eager. With 1 and 2 drafts steps are
  // recorded and replayed, with 2 as one region of two threads.
  bool same_tokens(const Layout& layout, int next_n);
  int max_next_n() const { return case_.has_mtp ? 3 : 1; }
  // Largest relative L2 difference of any token's logits.
  double logits_difference(const json& config) const;

  const LayoutCase& layout_case() const { return case_; }

 private:
  std::vector<Ids> tokens(const json& config, int next_n, bool sampled) const;

  LayoutCase case_;
  Dump dump_;
  std::map<bool, std::vector<Ids>> tokens_;  // by whether they are sampled
};

}  // namespace troupe::system_tests
