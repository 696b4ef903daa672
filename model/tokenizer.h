// model/tokenizer.h: text to token ids and back, as tokenizer.json or a tiktoken file says:
// byte-level BPE, id for id what Hugging Face tokenizers and tiktoken give.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::model {

// Encoding: added tokens are cut out first; the rest goes through the file's pre-tokenizer (Split
// with regular expressions, Digits, ByteLevel), then BPE merges by rank inside each piece. Special
// tokens around the text come from the file's TemplateProcessing. For LlamaTokenizerFast, the class
// of DeepSeek's checkpoints, add_bos_token and add_eos_token of tokenizer_config.json take its
// place, as in transformers; never both.
// Anything in the files that is not implemented is a UserError naming file and key: no guessing.
// Constant after construction; one object serves any number of threads.
class Tokenizer {
 public:
  // Reads DIR/tokenizer.json, else DIR/tiktoken.model, and DIR/tokenizer_config.json beside it.
  explicit Tokenizer(const std::filesystem::path& directory);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  // Throws UserError when `text` is not UTF-8 (naming the byte offset), is longer than 1 GiB, or
  // makes a pattern of the file backtrack without end. `add_special` off leaves out what stands
  // around the text; special tokens spelled in the text are tokens either way. Time linear in the
  // text up to a logarithm.
  std::vector<int32_t> encode(std::string_view text, bool add_special = true) const;
  // Special tokens are left out when skip_special is set, ids without a token always. Bytes that
  // are no UTF-8 become U+FFFD.
  std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;
  // The raw bytes one token stands for; empty for an id without one.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  int64_t vocab_size() const;    // largest id + 1
  int32_t bos_token_id() const;  // tokenizer_config.json's bos_token; -1: none

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Decoding as tokens arrive: gives out whole UTF-8 characters only.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}
  // The text that became complete with this token; may be empty. All parts, then finish(), make up
  // what decode() gives for all ids.
  std::string push(int32_t id);
  // What is left at the end: an incomplete character becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // bytes of an incomplete character
};

}  // namespace troupe::model
