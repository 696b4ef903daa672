// model/tiktoken_file.h: Kimi-K2's tokenizer: ranks in OpenAI's tiktoken format, and its class.
#pragma once

#include <filesystem>

#include "model/tokenizer_file.h"

namespace troupe::model {

inline constexpr const char* kTiktokenFile = "tiktoken.model";

// Reads DIR/tiktoken.model, a line "<token in base64> <rank>" for each token, where ranks are ids
// and count from 0, and DIR/tokenizer_config.json. What those do not say is code in the checkpoint
// (tokenization_kimi.py, class TikTokenTokenizer), and is written down here: the split pattern, the
// 256 special tokens behind the ranks, of which added_tokens_decoder names some and the others are
// "<|reserved_token_ID|>", and the longest stretch of text that is encoded at once. Another
// tokenizer_class is a UserError, as is whatever is malformed.
//
// Merging as tiktoken does it: of all neighbours whose bytes together are a token, those of lowest
// rank, leftmost first.
TokenizerFile read_tiktoken_file(const std::filesystem::path& directory);

}  // namespace troupe::model
