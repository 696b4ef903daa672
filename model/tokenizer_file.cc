#include "model/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "model/input_file.h"
#include "model/json_file.h"

namespace troupe::model {

namespace {

using nlohmann::json;
using IdOfToken = std::unordered_map<std::string_view, int32_t>;

// Values in one file; the largest published tokenizer.json has a million.
constexpr int64_t kMaxJsonValues = int64_t{1} << 23;

json read_bounded(const std::filesystem::path& path) {
  const Mapping mapping = map_input_file(path);
  int64_t num_values = 0;
  const auto count = [&](int, json::parse_event_t, json&) {
    if (++num_values > kMaxJsonValues)
      throw_user_error("{}: more than {} values; this is no tokenizer", path.string(),
                       kMaxJsonValues);
    return true;
  };
  return parse_json({reinterpret_cast<const char*>(mapping.data()), mapping.size()}, path.string(),
                    count);
}

// A JSON object of which every key is accounted for.
class Section : public JsonObject {
 public:
  Section(const json& value, std::string file, std::string prefix = "")
      : JsonObject(value, file, prefix), value_(value), file_(file), prefix_(prefix) {}

  const std::string& file() const { return file_; }
  const json* find(std::string_view key) const;
  const json& array(std::string_view key) const;
  std::string string(std::string_view key) const;
  std::string name(std::string_view key) const { return prefix_ + std::string(key); }
  Section section(std::string_view key) const;
  std::vector<Section> sections(std::string_view key) const;
  bool flag(std::string_view key) const;  // a boolean that must be there

  void allow(std::initializer_list<std::string_view> keys) const;
  // `key` may be there if it is null or equal to one of the values that change nothing.
  void expect(std::string_view key, std::initializer_list<json> neutral) const;

 private:
  const json& value_;
  std::string file_, prefix_;
};

const json* Section::find(std::string_view key) const {
  const auto found = value_.find(key);
  return found == value_.end() || found->is_null() ? nullptr : &*found;
}

const json& Section::array(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr || !value->is_array()) fail(key, "must be a list");
  return *value;
}

std::string Section::string(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr || !value->is_string()) fail(key, "must be a string");
  return value->get<std::string>();
}

Section Section::section(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) fail(key, "is missing");
  if (!value->is_object()) fail(key, "must be an object");
  return Section(*value, file_, name(key) + ".");
}

std::vector<Section> Section::sections(std::string_view key) const {
  std::vector<Section> all;
  for (const json& value : array(key)) {
    const std::string element = fmt::format("{}[{}]", key, all.size());
    if (!value.is_object()) fail(element, "must be an object");
    all.emplace_back(value, file_, name(element) + ".");
  }
  return all;
}

bool Section::flag(std::string_view key) const {
  if (!has(key)) fail(key, "is missing");
  return boolean(key, false);
}

void Section::allow(std::initializer_list<std::string_view> keys) const {
  for (const auto& [key, value] : value_.items())
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      fail(printable(key), "is not supported");
}

void Section::expect(std::string_view key, std::initializer_list<json> neutral) const {
  const json* value = find(key);
  if (value != nullptr && std::find(neutral.begin(), neutral.end(), *value) == neutral.end())
    fail(key, fmt::format("is {}, which is not supported", printable(value->dump())));
}

void read_vocabulary(const Section& model, TokenizerFile& file) {
  const Section vocabulary = model.section("vocab");
  std::vector<bool> taken;
  for (const auto& [token, id] : model.find("vocab")->items()) {
    if (!id.is_number_integer() || id < 0 || id > kMaxTokenId)
      vocabulary.fail(printable(token), fmt::format("is {}; ids are integers from 0 to {}",
                                                    printable(id.dump()), kMaxTokenId));
    const auto number = id.get<int32_t>();
    if (static_cast<size_t>(number) >= taken.size()) taken.resize(number + 1);
    if (taken[number])
      vocabulary.fail(printable(token), fmt::format("has id {}, as another token does", number));
    taken[number] = true;
    file.vocabulary.emplace_back(token, number);
  }
  if (file.vocabulary.empty()) model.fail("vocab", "is empty");
}

// A merge is "a b" or ["a", "b"].
std::pair<std::string, std::string> read_merge(const Section& model, const json& merge, size_t i) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  const std::string both = merge.is_string() ? merge.get<std::string>() : "";
  const size_t space = both.find(' ');
  if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
    model.fail(fmt::format("merges[{}]", i), "must be \"a b\" or [\"a\", \"b\"]");
  return {both.substr(0, space), both.substr(space + 1)};
}

void read_merges(const Section& model, const IdOfToken& ids, TokenizerFile& file) {
  const json& merges = model.array("merges");
  const auto id_of = [&](const std::string& token, size_t i) {
    const auto found = ids.find(token);
    if (found == ids.end())
      model.fail(fmt::format("merges[{}]", i),
                 fmt::format("needs '{}', which is not in vocab", printable(token)));
    return found->second;
  };
  for (size_t i = 0; i < merges.size(); ++i) {
    if (merges[i].is_string() && merges[i].get_ref<const std::string&>().starts_with("#version"))
      continue;
    const auto [left, right] = read_merge(model, merges[i], i);
    file.merges.push_back({id_of(left, i), id_of(right, i), id_of(left + right, i)});
  }
}

void read_model(const Section& model, TokenizerFile& file) {
  model.allow({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
               "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  model.choice<bool>("type", {{"BPE", true}});
  model.expect("dropout", {0, 0.0});
  model.expect("continuing_subword_prefix", {""});
  model.expect("end_of_word_suffix", {""});
  model.expect("byte_fallback", {false});
  file.ignore_merges = model.boolean("ignore_merges", false);
  read_vocabulary(model, file);
}

// By id, up to kMaxTokenId.
std::vector<bool> known_ids(const TokenizerFile& file) {
  std::vector<bool> known(kMaxTokenId + 1);
  for (const auto& [token, id] : file.vocabulary) known[id] = true;
  for (const AddedToken& token : file.added_tokens) known[token.id] = true;
  return known;
}

AddedToken read_added_token(const Section& section) {
  section.allow({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  AddedToken token{.id = static_cast<int32_t>(section.integer("id", {0, kMaxTokenId})),
                   .content = section.string("content"),
                   .single_word = section.flag("single_word"),
                   .lstrip = section.flag("lstrip"),
                   .rstrip = section.flag("rstrip"),
                   .normalized = section.flag("normalized"),
                   .special = section.flag("special")};
  if (token.content.empty() || token.content.size() > AddedTokenSplitter::kMaxContentBytes)
    section.fail("content", fmt::format("has {} bytes; 1 to {} are supported", token.content.size(),
                                        AddedTokenSplitter::kMaxContentBytes));
  return token;
}

// The reference gives each added token the id of the vocabulary or else the next one, and ignores
// the file's; where they differ the file says two things.
void read_added_tokens(const Section& root, IdOfToken& ids, TokenizerFile& file) {
  if (!root.has("added_tokens")) return;
  std::vector<bool> taken = known_ids(file);
  auto next_id = static_cast<int32_t>(file.vocabulary.size());
  const std::vector<Section> sections = root.sections("added_tokens");
  file.added_tokens.reserve(sections.size());  // ids keeps views of the contents
  for (const Section& section : sections) {
    const AddedToken& token = file.added_tokens.emplace_back(read_added_token(section));
    const auto [known, is_new] = ids.try_emplace(token.content, next_id);
    if (token.id != known->second)
      section.fail("id", fmt::format("is {}, but the vocabulary makes '{}' {}", token.id,
                                     printable(token.content), known->second));
    if (!is_new) continue;
    if (next_id > kMaxTokenId || taken[next_id])
      section.fail("id", fmt::format("is {}, as that of another token", token.id));
    taken[next_id++] = true;
  }
}

SplitStep read_split(const Section& section) {
  section.allow({"type", "pattern", "behavior", "invert"});
  const Section pattern = section.section("pattern");
  pattern.allow({"Regex", "String"});
  SplitStep split;
  split.is_regex = pattern.has("Regex");
  if (split.is_regex && pattern.has("String")) pattern.fail("String", "stands beside Regex");
  split.pattern = pattern.string(split.is_regex ? "Regex" : "String");
  if (split.pattern.empty()) section.fail("pattern", "is empty");
  split.behavior = section.choice<SplitStep::Behavior>(
      "behavior",
      {{"Isolated", SplitStep::Behavior::kIsolated}, {"Removed", SplitStep::Behavior::kRemoved}});
  split.invert = section.flag("invert");
  try {
    PreTokenizer{PreTokenizerConfig{.splits = {split}}};
  } catch (const std::invalid_argument& error) {
    section.fail("pattern",
                 fmt::format("'{}' is not supported: {}", printable(split.pattern), error.what()));
  }
  return split;
}

// Appends to `config`; true when ByteLevel, which must come last, was met.
bool read_pre_tokenizer(const Section& section, PreTokenizerConfig& config) {
  enum class Type { kSequence, kSplit, kDigits, kByteLevel };
  switch (section.choice<Type>("type", {{"Sequence", Type::kSequence},
                                        {"Split", Type::kSplit},
                                        {"Digits", Type::kDigits},
                                        {"ByteLevel", Type::kByteLevel}})) {
    case Type::kSequence: {
      section.allow({"type", "pretokenizers"});
      bool is_bytes = false;
      for (const Section& member : section.sections("pretokenizers")) {
        if (is_bytes) member.fail("type", "stands after ByteLevel, which is not supported");
        is_bytes = read_pre_tokenizer(member, config);
      }
      return is_bytes;
    }
    case Type::kSplit:
      config.splits.push_back(read_split(section));
      break;
    case Type::kDigits:
      section.allow({"type", "individual_digits"});
      config.splits.push_back(
          {.pattern = section.flag("individual_digits") ? R"(\p{N})" : R"(\p{N}+)"});
      break;
    case Type::kByteLevel:
      section.allow({"type", "add_prefix_space", "trim_offsets", "use_regex"});
      config.add_prefix_space = section.flag("add_prefix_space");
      config.use_regex = section.boolean("use_regex", true);
      return true;
  }
  if (config.splits.size() > PreTokenizer::kMaxSplits)
    section.fail("type", fmt::format("is split number {}; {} are supported", config.splits.size(),
                                     PreTokenizer::kMaxSplits));
  return false;
}

std::vector<int32_t> special_ids(const Section& processor, const std::string& name,
                                 const std::vector<bool>& known) {
  const Section special = processor.section("special_tokens").section(name);
  special.allow({"id", "ids", "tokens"});
  std::vector<int32_t> ids;
  for (const int64_t id : special.integers("ids", {0, kMaxTokenId})) {
    if (!known[id]) special.fail("ids", fmt::format("has {}, which is no token", id));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// The template of single texts: special tokens around "$A".
void read_template(const Section& processor, TokenizerFile& file) {
  processor.allow({"type", "single", "pair", "special_tokens"});
  const std::vector<bool> known = known_ids(file);
  int num_sequences = 0;
  for (const Section& piece : processor.sections("single")) {
    piece.allow({"Sequence", "SpecialToken"});
    if (piece.has("Sequence")) {
      piece.section("Sequence").choice<bool>("id", {{"A", true}});
      ++num_sequences;
    } else {
      std::vector<int32_t>& side = num_sequences == 0 ? file.prefix_ids : file.suffix_ids;
      const std::string name = piece.section("SpecialToken").string("id");
      for (const int32_t id : special_ids(processor, name, known)) side.push_back(id);
    }
  }
  if (num_sequences != 1) processor.fail("single", "must hold the sequence A once");
}

// True when a template was met: the reference does not simply nest a second one.
bool read_post_processor(const Section& section, TokenizerFile& file) {
  enum class Type { kSequence, kTemplate, kByteLevel };
  switch (section.choice<Type>("type", {{"Sequence", Type::kSequence},
                                        {"TemplateProcessing", Type::kTemplate},
                                        {"ByteLevel", Type::kByteLevel}})) {
    case Type::kSequence: {
      section.allow({"type", "processors"});
      int num_templates = 0;
      for (const Section& member : section.sections("processors")) {
        num_templates += read_post_processor(member, file);
        if (num_templates > 1) member.fail("type", "is a second template, which is not supported");
      }
      return num_templates > 0;
    }
    case Type::kTemplate:
      read_template(section, file);
      return true;
    case Type::kByteLevel:  // concerns offsets, which nobody asks for here
      return false;
  }
  return false;
}

void read_normalizer(const Section& root) {
  if (!root.has("normalizer")) return;
  const Section normalizer = root.section("normalizer");
  normalizer.allow({"type", "normalizers"});
  normalizer.choice<bool>("type", {{"Sequence", true}});
  if (!normalizer.array("normalizers").empty())
    normalizer.fail("normalizers", "must be empty: normalizers are not supported");
}

IdOfToken read_tokenizer_json(const Section& root, TokenizerFile& file) {
  root.allow({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
              "post_processor", "decoder", "model"});
  root.expect("version", {"1.0"});
  root.expect("truncation", {});
  root.expect("padding", {});
  read_normalizer(root);
  root.section("decoder").choice<bool>("type", {{"ByteLevel", true}});
  if (!read_pre_tokenizer(root.section("pre_tokenizer"), file.pre_tokenizer))
    root.fail("pre_tokenizer", "must end with ByteLevel");

  const Section model = root.section("model");
  read_model(model, file);
  IdOfToken ids(file.vocabulary.begin(), file.vocabulary.end());
  read_merges(model, ids, file);
  read_added_tokens(root, ids, file);
  if (root.has("post_processor")) read_post_processor(root.section("post_processor"), file);
  return ids;
}

// The id of a token that tokenizer_config.json names as a string or as an AddedToken; -1 when it
// names none.
int32_t named_token(const Section& config, std::string_view key, const IdOfToken& ids) {
  const json* value = config.find(key);
  if (value == nullptr) return -1;
  const std::string content =
      value->is_object() ? config.section(key).string("content") : config.string(key);
  const auto found = ids.find(content);
  if (found == ids.end())
    config.fail(key,
                fmt::format("is '{}', which tokenizer.json does not have", printable(content)));
  return found->second;
}

// Transformers' LlamaTokenizerFast puts its own template in place of the file's post-processor; it
// is also what AutoTokenizer takes for DeepSeek models when no class is named.
bool replaces_post_processor(const Section& config) {
  if (!config.has("tokenizer_class"))
    return config.has("add_bos_token") || config.has("add_eos_token");
  const std::string name = config.string("tokenizer_class");
  return name == "LlamaTokenizerFast" || name == "LlamaTokenizer";
}

void read_tokenizer_config(const Section& config, const IdOfToken& ids, TokenizerFile& file) {
  config.expect("split_special_tokens", {false});
  config.expect("add_prefix_space", {file.pre_tokenizer.add_prefix_space});
  file.bos_token_id = named_token(config, "bos_token", ids);
  if (!replaces_post_processor(config)) return;

  const auto wanted = [&](std::string_view switch_key, bool fallback, std::string_view token_key) {
    std::vector<int32_t> wanted_ids;
    if (!config.boolean(switch_key, fallback)) return wanted_ids;
    wanted_ids.push_back(named_token(config, token_key, ids));
    if (wanted_ids.back() < 0)
      config.fail(token_key, fmt::format("is missing, but {} is on", switch_key));
    return wanted_ids;
  };
  file.prefix_ids = wanted("add_bos_token", true, "bos_token");
  file.suffix_ids = wanted("add_eos_token", false, "eos_token");
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& directory) {
  TokenizerFile file;
  const std::filesystem::path path = directory / "tokenizer.json";
  const json tokenizer = read_bounded(path);
  const IdOfToken ids = read_tokenizer_json(Section(tokenizer, path.string()), file);

  const std::filesystem::path config_path = directory / "tokenizer_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(config_path, ignored)) {
    const json config = read_bounded(config_path);
    read_tokenizer_config(Section(config, config_path.string()), ids, file);
  }
  return file;
}

}  // namespace troupe::model
