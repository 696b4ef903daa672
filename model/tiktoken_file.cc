#include "model/tiktoken_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_map>

#include "base/error.h"
#include "model/byte_alphabet.h"
#include "model/input_file.h"
#include "model/tokenizer_section.h"

namespace troupe::model {
namespace {

// Quadratic in a token's length: every cut of it is looked up. Published ones have up to 128.
constexpr size_t kMaxTokenBytes = 1024;
constexpr int32_t kReservedTokens = 256;

// moonshotai/Kimi-K2-Instruct, tokenization_kimi.py, pat_str.
constexpr const char* kKimiPattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr auto kBase64Values = [] {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::array<int8_t, 256> values{};
  values.fill(-1);
  for (size_t i = 0; i < kDigits.size(); ++i)
    values[static_cast<uint8_t>(kDigits[i])] = static_cast<int8_t>(i);
  return values;
}();

// RFC 4648, section 4. Empty where `text` is none.
std::string bytes_from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return {};
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    const int value = kBase64Values[static_cast<uint8_t>(c)];
    if (value < 0) return {};
    bits = bits << 6 | static_cast<uint32_t>(value);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(bits >> num_bits & 0xff);
  }
  return bytes;
}

using IdOfBytes = std::unordered_map<std::string_view, int32_t>;

// The bytes of each token, by id.
std::vector<std::string> read_ranks(const std::filesystem::path& path) {
  const InputFile file(path);
  std::string_view rest = file.text();
  std::vector<std::string> tokens;
  for (int line_number = 1; !rest.empty(); ++line_number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.empty()) continue;
    const auto fail = [&](const char* what) {
      throw_user_error("{}: line {}: {}", path.string(), line_number, what);
    };
    const size_t space = line.find(' ');
    if (space == line.npos) fail("must be a token in base64 and its rank");
    if (space > 2 * kMaxTokenBytes) fail("the token is too long");
    int32_t rank = -1;
    const char* end = line.data() + line.size();
    const auto parsed = std::from_chars(line.data() + space + 1, end, rank);
    if (parsed.ec != std::errc() || parsed.ptr != end ||
        rank != static_cast<int32_t>(tokens.size()) || rank >= kMaxTokenId)
      fail("ranks must count from 0, one a line");
    std::string bytes = bytes_from_base64(line.substr(0, space));
    if (bytes.empty()) fail("the token is not base64");
    tokens.push_back(std::move(bytes));
  }
  file.require_unchanged();
  return tokens;
}

std::vector<Bpe::Merge> merges_of(const std::vector<std::string>& tokens, const IdOfBytes& ids) {
  std::vector<Bpe::Merge> merges;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string_view token = tokens[i];
    const auto id = static_cast<int32_t>(i);
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids.find(token.substr(0, cut));
      const auto right = ids.find(token.substr(cut));
      if (left != ids.end() && right != ids.end())
        merges.push_back({.left = left->second, .right = right->second, .result = id, .rank = id});
    }
  }
  return merges;
}

void add_special_tokens(const TokenizerSection& config, int32_t num_ranks, TokenizerFile& file) {
  std::vector<AddedToken> tokens;
  for (int32_t i = num_ranks; i < num_ranks + kReservedTokens; ++i)
    tokens.push_back({.id = i, .content = fmt::format("<|reserved_token_{}|>", i)});
  if (config.has("added_tokens_decoder")) {
    const TokenizerSection decoder = config.section("added_tokens_decoder");
    for (const auto& [key, value] : config.find("added_tokens_decoder")->items()) {
      int32_t id = -1;
      std::from_chars(key.data(), key.data() + key.size(), id);
      if (id < num_ranks || id >= num_ranks + kReservedTokens || std::to_string(id) != key)
        decoder.fail(printable(key), fmt::format("is no id from {} to {}", num_ranks,
                                                 num_ranks + kReservedTokens - 1));
      if (!value.is_object()) decoder.fail(key, "must be an object");
      const TokenizerSection entry(value, config.file(), decoder.name(key) + ".");
      tokens[id - num_ranks] = read_added_token(entry, id);
    }
  }
  std::unordered_map<std::string_view, int32_t> by_content;
  for (const AddedToken& token : tokens)
    if (!by_content.emplace(token.content, token.id).second)
      config.fail("added_tokens_decoder", fmt::format("has '{}' twice", printable(token.content)));
  file.added_tokens = tokens;
}

void read_config(const TokenizerSection& config, int32_t num_ranks, TokenizerFile& file) {
  config.choice<bool>("tokenizer_class", {{"TikTokenTokenizer", true}});
  add_special_tokens(config, num_ranks, file);
  if (!config.has("bos_token")) return;
  const std::string bos = config.find("bos_token")->is_object()
                              ? config.section("bos_token").string("content")
                              : config.string("bos_token");
  for (const AddedToken& token : file.added_tokens)
    if (token.content == bos) file.bos_token_id = token.id;
  if (file.bos_token_id < 0)
    config.fail("bos_token", fmt::format("is '{}', which is no token", printable(bos)));
}

}  // namespace

TokenizerFile read_tiktoken_file(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kTiktokenFile;
  const std::vector<std::string> tokens = read_ranks(path);
  IdOfBytes ids;
  for (size_t i = 0; i < tokens.size(); ++i)
    if (!ids.emplace(tokens[i], static_cast<int32_t>(i)).second)
      throw_user_error("{}: rank {}: the token has another rank, too", path.string(), i);

  TokenizerFile file;
  file.merges = merges_of(tokens, ids);
  file.ignore_merges = true;  // tiktoken looks a piece up before it merges
  file.pre_tokenizer.splits.push_back({.pattern = kKimiPattern});
  file.max_run_characters = 25'000;
  file.max_text_characters = 400'000;
  for (size_t i = 0; i < tokens.size(); ++i)
    file.vocabulary.emplace_back(alphabet_from_bytes(tokens[i]), static_cast<int32_t>(i));

  const std::filesystem::path config_path = directory / "tokenizer_config.json";
  const nlohmann::json config = read_tokenizer_json_file(config_path);
  read_config(TokenizerSection(config, config_path.string()), static_cast<int32_t>(tokens.size()),
              file);
  return file;
}

}  // namespace troupe::model
