// model/tokenizer.h: tokenizer.json of a checkpoint: byte-level BPE, as Hugging Face tokenizers runs it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::model {

// Encoding: added tokens are cut out first; the rest goes through the file's pre-tokenizer (a Sequence
// of Split with regular expressions and ByteLevel, run by PCRE2 in UTF mode with Unicode properties),
// then BPE merges by rank. Special tokens that the file's post-processor or tokenizer_config.json
// (add_bos_token, add_eos_token) ask for are added unless add_special is off.
// Anything in the file that is not implemented is a UserError naming file and key: no guessing.
class Tokenizer {
 public:
  // Reads DIR/tokenizer.json and, if present, DIR/tokenizer_config.json.
  explicit Tokenizer(const std::filesystem::path& directory);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  // Throws UserError when `text` is not UTF-8 (naming the byte offset). Time linear in the text
  // up to a logarithm.
  std::vector<int32_t> encode(std::string_view text, bool add_special = true) const;
  // Special tokens are left out when skip_special is set. Bytes that are no UTF-8 become U+FFFD.
  std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;
  // The raw bytes one token stands for; empty for an id without one.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  int64_t vocab_size() const;  // largest id + 1
  int32_t bos_token_id() const;  // -1: none

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Decoding as tokens arrive: gives out whole UTF-8 characters only.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}
  // The text that became complete with this token; may be empty.
  std::string push(int32_t id);
  // What is left at the end: an incomplete character becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string pending_;  // bytes of an incomplete character
};

}  // namespace troupe::model
