// model/tokenizer_file.h: what the files of a tokenizer say, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pretokenizer.h"

namespace troupe::model {

struct TokenizerFile {
  // Tokens as the file spells them, mostly in GPT-2's alphabet for bytes; no id comes twice.
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  std::vector<Bpe::Merge> merges;  // by rank
  bool ignore_merges = false;      // a piece that is a token stays whole
  // Their ids are those of the vocabulary, or follow it in the order of the list.
  std::vector<AddedToken> added_tokens;
  PreTokenizerConfig pre_tokenizer;
  // What encoding puts before and after a text when special tokens are asked for.
  std::vector<int32_t> prefix_ids, suffix_ids;
  int32_t bos_token_id = -1;
  // Texts are encoded in stretches (model/text_chunks.h); 0: whole.
  size_t max_text_characters = 0, max_run_characters = 0;
};

// Reads DIR/tokenizer.json and, if present, DIR/tokenizer_config.json; without it a tiktoken file
// (model/tiktoken_file.h). Throws UserError naming file and key for whatever is malformed or not
// implemented.
TokenizerFile read_tokenizer_file(const std::filesystem::path& directory);

// The name of the file that DIR's tokenizer is read from; empty when there is none.
std::string tokenizer_file_name(const std::filesystem::path& directory);

}  // namespace troupe::model
