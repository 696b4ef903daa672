#include "model/tokenizer_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "model/tiktoken_file.h"
#include "model/tokenizer_section.h"

namespace troupe::model {

namespace {

using nlohmann::json;
using Section = TokenizerSection;
using IdOfToken = std::unordered_map<std::string_view, int32_t>;

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
    file.merges.push_back({.left = id_of(left, i),
                           .right = id_of(right, i),
                           .result = id_of(left + right, i),
                           .rank = static_cast<int32_t>(file.merges.size())});
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

// The reference gives each added token the id of the vocabulary or else the next one, and ignores
// the file's; where they differ the file says two things.
void read_added_tokens(const Section& root, IdOfToken& ids, TokenizerFile& file) {
  if (!root.has("added_tokens")) return;
  std::vector<bool> taken = known_ids(file);
  auto next_id = static_cast<int32_t>(file.vocabulary.size());
  const std::vector<Section> sections = root.sections("added_tokens");
  file.added_tokens.reserve(sections.size());  // ids keeps views of the contents
  for (const Section& section : sections) {
    const AddedToken& token = file.added_tokens.emplace_back(
        read_added_token(section, section.integer("id", {0, kMaxTokenId})));
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

std::string tokenizer_file_name(const std::filesystem::path& directory) {
  std::error_code ignored;
  for (const char* name : {"tokenizer.json", kTiktokenFile})
    if (std::filesystem::exists(directory / name, ignored)) return name;
  return "";
}

TokenizerFile read_tokenizer_file(const std::filesystem::path& directory) {
  if (tokenizer_file_name(directory) == kTiktokenFile) return read_tiktoken_file(directory);
  TokenizerFile file;
  const std::filesystem::path path = directory / "tokenizer.json";
  const json tokenizer = read_tokenizer_json_file(path);
  const IdOfToken ids = read_tokenizer_json(Section(tokenizer, path.string()), file);

  const std::filesystem::path config_path = directory / "tokenizer_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(config_path, ignored)) {
    const json config = read_tokenizer_json_file(config_path);
    read_tokenizer_config(Section(config, config_path.string()), ids, file);
  }
  return file;
}

}  // namespace troupe::model
