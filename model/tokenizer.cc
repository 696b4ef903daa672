#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/byte_alphabet.h"
#include "model/pretokenizer.h"
#include "model/text_chunks.h"
#include "model/tokenizer_file.h"
#include "model/utf8.h"

namespace troupe::model {

namespace {

// Positions in a piece are 32 bits wide.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

// The bytes of every token, by id. Ids may have gaps.
class TokenTable {
 public:
  explicit TokenTable(const TokenizerFile& file);

  std::string_view bytes(int32_t id) const;
  bool is_special(int32_t id) const { return has(id) && special_[id]; }
  int64_t size() const { return static_cast<int64_t>(special_.size()); }

 private:
  bool has(int32_t id) const { return id >= 0 && id < size(); }

  std::string text_;              // the bytes of all tokens
  std::vector<uint32_t> starts_;  // by id, and one more
  std::vector<bool> special_;     // by id
};

TokenTable::TokenTable(const TokenizerFile& file) {
  // As ByteLevel decodes: a token that is not all of the byte alphabet stands for itself.
  std::vector<std::pair<int32_t, std::string_view>> tokens;
  for (const auto& [token, id] : file.vocabulary) tokens.emplace_back(id, token);
  for (const AddedToken& token : file.added_tokens) tokens.emplace_back(token.id, token.content);
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());

  for (const auto& [id, token] : tokens) {
    starts_.resize(id + 1, static_cast<uint32_t>(text_.size()));
    text_ += bytes_from_alphabet(token).value_or(std::string(token));
  }
  special_.resize(starts_.size());
  starts_.push_back(static_cast<uint32_t>(text_.size()));
  for (const AddedToken& token : file.added_tokens) special_[token.id] = token.special;
}

std::string_view TokenTable::bytes(int32_t id) const {
  if (!has(id)) return {};
  return std::string_view(text_).substr(starts_[id], starts_[id + 1] - starts_[id]);
}

AddedTokenSplitter splitter(const TokenizerFile& file, bool normalized) {
  std::vector<AddedToken> tokens;
  for (const AddedToken& token : file.added_tokens)
    if (token.normalized == normalized) tokens.push_back(token);
  return AddedTokenSplitter(std::move(tokens));
}

// Looks strings up by views.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using IdOfBytes = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// Short pieces that were encoded before in the same call: where their ids lie in the output. Texts
// repeat their words, and a look-up takes a tenth of merging one.
class PieceCache {
 public:
  explicit PieceCache(size_t text_bytes)
      : entries_(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 1, kMaxEntries))) {}

  // Appends the ids of `piece`, or false.
  bool append(std::string_view piece, std::vector<int32_t>& ids) const {
    if (piece.size() > kMaxPieceBytes) return false;
    const Entry& entry = entries_[slot_of(piece)];
    if (entry.piece() != piece) return false;
    for (uint32_t i = 0; i < entry.count; ++i) ids.push_back(ids[entry.first + i]);
    return true;
  }

  // ids[first..] are those of `piece`.
  void remember(std::string_view piece, size_t first, const std::vector<int32_t>& ids) {
    if (piece.size() > kMaxPieceBytes || ids.size() > UINT32_MAX) return;
    Entry& entry = entries_[slot_of(piece)];
    std::copy(piece.begin(), piece.end(), entry.bytes);
    entry.size = static_cast<uint8_t>(piece.size());
    entry.first = static_cast<uint32_t>(first);
    entry.count = static_cast<uint32_t>(ids.size() - first);
  }

 private:
  static constexpr size_t kMaxPieceBytes = 23, kMaxEntries = size_t{1} << 14;
  struct Entry {
    uint8_t size = 0;
    char bytes[kMaxPieceBytes];
    uint32_t first = 0, count = 0;
    std::string_view piece() const { return {bytes, size}; }
  };

  size_t slot_of(std::string_view piece) const {
    return StringHash()(piece) & (entries_.size() - 1);
  }

  std::vector<Entry> entries_;  // a power of two
};

// Tokens that are spelled in the byte alphabet: the only ones BPE can arrive at.
IdOfBytes ids_by_bytes(const TokenizerFile& file) {
  IdOfBytes ids;
  for (const auto& [token, id] : file.vocabulary)
    if (std::optional<std::string> bytes = bytes_from_alphabet(token)) ids[*bytes] = id;
  return ids;
}

Bpe make_bpe(const TokenizerFile& file, const IdOfBytes& ids) {
  std::array<int32_t, 256> byte_ids;
  for (size_t byte = 0; byte < byte_ids.size(); ++byte) {
    const auto found = ids.find(std::string(1, static_cast<char>(byte)));
    byte_ids[byte] = found == ids.end() ? -1 : found->second;
  }
  return Bpe(byte_ids, file.merges);
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerFile file)
      : tokens(file),
        raw_pass(splitter(file, false)),
        normalized_pass(splitter(file, true)),
        pre_tokenizer(std::move(file.pre_tokenizer)),
        ids_of_bytes(ids_by_bytes(file)),
        bpe(make_bpe(file, ids_of_bytes)),
        prefix_ids(std::move(file.prefix_ids)),
        suffix_ids(std::move(file.suffix_ids)),
        bos_token_id(file.bos_token_id),
        max_text_characters(file.max_text_characters),
        max_run_characters(file.max_run_characters) {
    if (!file.ignore_merges) ids_of_bytes.clear();
  }

  void encode(std::string_view text, PieceCache& cache, std::vector<int32_t>& ids) const;
  void append_ids(std::string_view text, PieceCache& cache, std::vector<int32_t>& ids) const;

  TokenTable tokens;
  AddedTokenSplitter raw_pass, normalized_pass;
  PreTokenizer pre_tokenizer;
  IdOfBytes ids_of_bytes;  // pieces that stay whole
  Bpe bpe;
  std::vector<int32_t> prefix_ids, suffix_ids;
  int32_t bos_token_id;
  size_t max_text_characters, max_run_characters;
};

void Tokenizer::Impl::encode(std::string_view text, PieceCache& cache,
                             std::vector<int32_t>& ids) const {
  std::vector<Segment> raw_segments, segments;
  raw_pass.split(text, raw_segments);
  for (const Segment& raw : raw_segments) {
    segments.clear();
    if (raw.token >= 0)
      segments.push_back(raw);
    else
      normalized_pass.split(raw.text, segments);
    for (const Segment& segment : segments) {
      if (segment.token >= 0)
        ids.push_back(segment.token);
      else
        append_ids(segment.text, cache, ids);
    }
  }
}

// `text` holds no added tokens.
void Tokenizer::Impl::append_ids(std::string_view text, PieceCache& cache,
                                 std::vector<int32_t>& ids) const {
  pre_tokenizer.for_each_piece(text, [&](std::string_view piece) {
    if (cache.append(piece, ids)) return;
    const size_t first = ids.size();
    const auto whole = ids_of_bytes.find(piece);
    if (whole != ids_of_bytes.end())
      ids.push_back(whole->second);
    else
      bpe.encode(piece, ids);
    cache.remember(piece, first, ids);
  });
}

Tokenizer::Tokenizer(const std::filesystem::path& directory)
    : impl_(std::make_unique<Impl>(read_tokenizer_file(directory))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  if (const std::optional<size_t> offset = find_invalid_utf8(text))
    throw_user_error("the text to encode is not UTF-8 at byte {}; convert it first", *offset);
  if (text.size() > kMaxTextBytes)
    throw_user_error("the text to encode has {} bytes; at most {} are supported", text.size(),
                     kMaxTextBytes);

  std::vector<int32_t> ids;
  if (add_special) ids = impl_->prefix_ids;
  PieceCache cache(text.size());
  if (impl_->max_text_characters == 0) {
    impl_->encode(text, cache, ids);
  } else {
    for_each_chunk(text, impl_->max_text_characters, impl_->max_run_characters,
                   [&](std::string_view chunk) { impl_->encode(chunk, cache, ids); });
  }
  if (add_special) ids.insert(ids.end(), impl_->suffix_ids.begin(), impl_->suffix_ids.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids)
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  return take_all_utf8_lossy(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const { return impl_->tokens.bytes(id); }
bool Tokenizer::is_special(int32_t id) const { return impl_->tokens.is_special(id); }
int64_t Tokenizer::vocab_size() const { return impl_->tokens.size(); }
int32_t Tokenizer::bos_token_id() const { return impl_->bos_token_id; }

std::string StreamDecoder::push(int32_t id) {
  if (!skip_special_ || !tokenizer_->is_special(id)) pending_ += tokenizer_->token_bytes(id);
  return take_utf8_lossy(pending_);
}

std::string StreamDecoder::finish() { return take_all_utf8_lossy(pending_); }

}  // namespace troupe::model
