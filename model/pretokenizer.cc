#include "model/pretokenizer.h"

#include "base/error.h"
#include "model/split_pattern.h"

namespace troupe::model {

namespace {

// openai/gpt-2, src/encoder.py
const SplitStep kGpt2Split = {
    .pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"};

}  // namespace

PreTokenizer::PreTokenizer(PreTokenizerConfig config) : config_(std::move(config)) {
  TROUPE_CHECK(config_.splits.size() <= kMaxSplits, "{} splits", config_.splits.size());
  const auto compile = [&](const SplitStep& split) {
    if (split.is_regex)
      patterns_.emplace_back(split_pattern_to_pcre2(split.pattern), Regex::Syntax::kPcre2);
    else
      patterns_.emplace_back(split.pattern, Regex::Syntax::kLiteral);
  };
  for (const SplitStep& split : config_.splits) compile(split);
  if (config_.use_regex) compile(kGpt2Split);
}

void PreTokenizer::for_each_piece(std::string_view text, const PieceSink& piece) const {
  std::vector<Regex::Scratch> scratch;
  scratch.reserve(patterns_.size());
  for (const Regex& pattern : patterns_) scratch.emplace_back(pattern);
  split_from(0, text, scratch, piece);
}

void PreTokenizer::split_from(size_t step, std::string_view text,
                              std::vector<Regex::Scratch>& scratch, const PieceSink& piece) const {
  if (text.empty()) return;
  if (step == config_.splits.size() && config_.add_prefix_space && text.front() != ' ') {
    const std::string spaced = ' ' + std::string(text);
    return split_from(step, spaced, scratch, piece);
  }
  if (step == patterns_.size()) return piece(text);

  const SplitStep& split = step < config_.splits.size() ? config_.splits[step] : kGpt2Split;
  const bool keep_matches = split.behavior == SplitStep::Behavior::kIsolated || split.invert;
  const bool keep_others = split.behavior == SplitStep::Behavior::kIsolated || !split.invert;
  Regex::Matches matches(patterns_[step], scratch[step], text);
  size_t done = 0;
  while (const std::optional<Regex::Match> match = matches.next()) {
    if (keep_others) split_from(step + 1, text.substr(done, match->begin - done), scratch, piece);
    if (keep_matches)
      split_from(step + 1, text.substr(match->begin, match->end - match->begin), scratch, piece);
    done = match->end;
  }
  if (keep_others) split_from(step + 1, text.substr(done), scratch, piece);
}

}  // namespace troupe::model
