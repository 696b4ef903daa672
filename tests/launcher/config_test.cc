#include "launcher/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "launcher/config_keys.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

const std::filesystem::path kSource = TROUPE_SOURCE_DIR;

using Overrides = std::vector<std::string>;

std::filesystem::path write_file(const std::string& text) {
  const auto path = model::scratch_directory().path() / "input.yaml";
  std::filesystem::remove(path);  // file systems flush a file that is truncated and rewritten
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

Config read(const std::string& yaml, const Overrides& overrides = {}) {
  return read_config(write_file(yaml), overrides);
}

// What is wrong with it, the file's path written as F; "accepted" if nothing is.
std::string error_of(const std::string& yaml, const Overrides& overrides = {}) {
  const auto path = write_file(yaml);
  std::string message = "accepted";
  try {
    read_config(path, overrides);
  } catch (const UserError& error) {
    message = error.what();
  }
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_LE(message.size(), 700u);
  const size_t at = message.find(path.string());
  return at == std::string::npos ? message : message.replace(at, path.string().size(), "F");
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// One key of any section as a file of its own, in line `line_of(key)`.
std::string file_with(const Key& key, const std::string& value) {
  std::string yaml, indent;
  for (std::string_view rest = key.section; !rest.empty();) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    yaml += indent + std::string(rest.substr(0, dot)) + ":\n";
    indent += "  ";
    rest.remove_prefix(std::min(dot + 1, rest.size()));
  }
  return yaml + indent + std::string(key.name) + ": " + value + "\n";
}

std::string place_of(const Key& key) {
  const auto line = 2 + std::ranges::count(key.section, '.');
  return fmt::format("F:{}: {}: ", line, key.path());
}

constexpr const char* kNothing = "# all by default\n";

// What every test file needs beside the key it is about.
const Overrides kPath{"model_config.model_path=m"};

TEST(ReadConfig, KeepsDefaultsForKeysThatAreNotGiven) {
  const Config config = read("model_config:\n  model_path: some/where\n");

  EXPECT_EQ(config.model.model_path, "some/where");
  EXPECT_EQ(config.model.dtype, ComputeType::kBfloat16);
  EXPECT_TRUE(config.model.with_ckpt);
  EXPECT_EQ(config.parallel.world_size, 1);
  EXPECT_EQ(config.scheduler.max_new_tokens, 32);
  EXPECT_EQ(config.data.temperature, 0);
  EXPECT_TRUE(config.notes.empty());
}

TEST(ReadConfig, ReadsJsonAsWell) {
  const Config config = read(
      "{\n\t\"model_config\": {\"model_path\": \"m\", \"with_ckpt\": false,\n"
      "\t\t\"custom_params\": {\"moe_chunk_max_len\": 7}},\n"
      "\t\"data_config\": {\"temperature\": 0.5, \"top_p\": 1e-1}\n}\n");

  EXPECT_FALSE(config.model.with_ckpt);
  EXPECT_EQ(config.model.moe_chunk_max_len, 7);
  EXPECT_EQ(config.data.temperature, 0.5);
  EXPECT_EQ(config.data.top_p, 0.1);
}

TEST(ReadConfig, ReadsEverySpellingOfABoolean) {
  for (const char* yes : {"True", "true", "TRUE", "yes", "Yes", "on"}) {
    EXPECT_TRUE(read(kNothing, {kPath[0], fmt::format("runtime_config.pin={}", yes)}).runtime.pin)
        << yes;
  }
  for (const char* no : {"False", "false", "no", "off"}) {
    EXPECT_FALSE(
        read(kNothing, {kPath[0], fmt::format("model_config.with_ckpt={}", no)}).model.with_ckpt)
        << no;
  }
}

TEST(ReadConfig, TakesTheGraphNamesOfNpuRecipesAsGraph) {
  for (const char* name : {"graph", "ge_graph", "acl_graph", "npugraph_ex"}) {
    const Config config = read(kNothing, {kPath[0], fmt::format("model_config.exe_mode={}", name)});
    EXPECT_EQ(config.model.exe_mode, ExeMode::kGraph) << name;
  }
}

TEST(ReadConfig, NotesWhatAnNpusWordsMeanHereWhereTheyAreAskedFor) {
  const auto notes = [](const char* key, const char* value) {
    return read(kNothing, {kPath[0], fmt::format("model_config.{}={}", key, value)}).notes;
  };
  for (const char* key :
       {"custom_params.enable_superkernel", "custom_params.enable_multi_streams"}) {
    ASSERT_EQ(notes(key, "True").size(), 1u);
    EXPECT_TRUE(notes(key, "True")[0].starts_with(fmt::format("model_config.{}: True: ", key)));
    EXPECT_TRUE(notes(key, "False").empty());
  }
  EXPECT_TRUE(notes("exe_mode", "acl_graph")[0].starts_with("model_config.exe_mode: graph: "));
  EXPECT_TRUE(notes("exe_mode", "eager").empty());
}

TEST(ReadConfig, AcceptsASectionWhoseKeysAreAllCommentedOut) {
  EXPECT_EQ(error_of("data_config:\n  # seed: 1\nmodel_config:\n  model_path: m\n"), "accepted");
}

TEST(ReadConfig, TheConfigurationsThatShipCanRun) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kSource / "configs")) {
    if (entry.path().extension() != ".yaml") continue;
    EXPECT_NO_THROW(require_runnable(read_config(entry.path(), {}))) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 5);
}

TEST(ReadConfig, SuggestsTheNearestNameForAnUnknownKey) {
  EXPECT_EQ(error_of("parallel_config:\n  world_size: 4\n  attn_tp_sise: 2\n"),
            "F:3: parallel_config.attn_tp_sise: unknown key; did you mean attn_tp_size?");
  EXPECT_EQ(
      error_of("model_config:\n  moe_tp_size: 2\n"),
      "F:2: model_config.moe_tp_size: unknown key; did you mean parallel_config.moe_tp_size?");
  EXPECT_EQ(error_of("model_config:\n  enable_offload: True\n"),
            "F:2: model_config.enable_offload: unknown key; did you mean "
            "model_config.custom_params.enable_offload?");
  EXPECT_EQ(error_of("model_config:\n  custom_params:\n    micro_batch_mod: 1\n"),
            "F:3: model_config.custom_params.micro_batch_mod: unknown key; did you mean "
            "micro_batch_mode?");
  EXPECT_EQ(error_of("paralel_config:\n  world_size: 4\n"),
            "F:1: paralel_config: unknown section; did you mean parallel_config?");
  EXPECT_EQ(error_of("world_size: 4\n"),
            "F:1: world_size: unknown section; did you mean parallel_config.world_size?");
  EXPECT_EQ(error_of("parallel_config:\n  oproj_tp_size: 4\n"),
            "F:2: parallel_config.oproj_tp_size: unknown key; did you mean o_proj_tp_size?");
}

TEST(ReadConfig, PointsToTheDocumentationWhenNoNameIsNear) {
  EXPECT_EQ(error_of("model_config:\n  zzz: 1\n"),
            "F:2: model_config.zzz: unknown key; docs/configuration.md lists all keys");
  EXPECT_TRUE(contains(error_of(std::string(900, 'k') + ": 1\n"), "docs/configuration.md"));
}

TEST(ReadConfig, EveryKeyMisspeltIsFoundAgain) {
  for (const Key& key : known_keys()) {
    const size_t half = key.name.size() / 2;
    const std::string misspelt =
        fmt::format("{}q{}", key.name.substr(0, half), key.name.substr(half));
    const Key wrong{.section = key.section, .name = misspelt};
    EXPECT_EQ(error_of(file_with(wrong, "1")),
              fmt::format("{}unknown key; did you mean {}?", place_of(wrong), key.name));
  }
}

TEST(ReadConfig, AValueOfTheWrongTypeIsAnErrorForEveryKey) {
  for (const Key& key : known_keys()) {
    std::vector<std::pair<std::string, std::string>> wrong{
        {"[1]", "a list"}, {"{a: 1}", "a map"}, {"", "nothing"}, {"null", "nothing"}};
    if (key.type != Key::Type::kText) wrong.push_back({"maybe", "maybe"});
    if (key.type == Key::Type::kFlag) wrong.push_back({"1", "1"});
    if (key.type == Key::Type::kInteger) wrong.push_back({"1.0", "1.0"});
    if (key.type == Key::Type::kInteger || key.type == Key::Type::kNumber) {
      wrong.push_back({"True", "True"});
      wrong.push_back({"\"1\"", "the string \"1\""});
      wrong.push_back({"nan", "nan"});
    }
    for (const auto& [value, shown] : wrong) {
      EXPECT_EQ(error_of(file_with(key, value),
                         kPath == Overrides{key.path() + "=m"} ? Overrides{} : kPath),
                fmt::format("{}expected {}, got {}", place_of(key), key.expected(), shown));
    }
  }
}

TEST(ReadConfig, AValueOutOfRangeIsAnErrorForEveryKey) {
  for (const Key& key : known_keys()) {
    std::vector<std::string> wrong;
    if (key.type == Key::Type::kInteger) {
      wrong = {std::to_string(key.min - 1), "-9223372036854775808", "9223372036854775808",
               "100000000000000000000000"};
      if (key.max < INT64_MAX) wrong.push_back(std::to_string(key.max + 1));
    } else if (key.type == Key::Type::kNumber) {
      wrong = {fmt::format("{}", key.number_min - 0.001), fmt::format("{}", key.number_max + 0.001),
               "inf", "-inf", "1e400"};
    }
    for (const std::string& value : wrong) {
      EXPECT_EQ(error_of(file_with(key, value), kPath),
                fmt::format("{}expected {}, got {}", place_of(key), key.expected(), value));
    }
  }
}

TEST(ReadConfig, StoresTheEndsOfEveryRangeAndEveryChoice) {
  const model::TemporaryDirectory directory;
  const auto placement =
      directory.write("placement.json", R"({"layers": [{"layer": 1, "experts": [0, 1]}]})");
  for (const Key& key : known_keys()) {
    if (key.field == nullptr) continue;
    std::vector<std::string> values;
    if (key.type == Key::Type::kFlag) values = {"True", "False"};
    if (key.type == Key::Type::kText) values = {"x y"};
    // A file that is read with the configuration.
    if (key.name == "expert_placement") values = {placement.string()};
    if (key.type == Key::Type::kInteger)
      values = {std::to_string(key.min), std::to_string(key.max)};
    if (key.type == Key::Type::kNumber) {
      values = {fmt::format("{}", key.number_min), fmt::format("{}", key.number_max)};
    }
    for (const std::string& value : values) {
      const Overrides world =
          key.divides_world ? Overrides{kPath[0], "parallel_config.world_size=1024"} : kPath;
      Overrides overrides = world;
      overrides.push_back(key.path() + "=" + value);
      EXPECT_EQ(value_text(key, read(kNothing, overrides)), value) << key.path();
    }
    for (const Choice& choice : key.choices) {
      const Config config =
          read(kNothing, {kPath[0], fmt::format("{}={}", key.path(), choice.name)});
      const auto first = std::ranges::find(key.choices, choice.value, &Choice::value);
      EXPECT_EQ(value_text(key, config), first->name);
    }
  }
}

TEST(ReadConfig, AChoiceThatIsNoneListsThem) {
  EXPECT_EQ(error_of("model_config:\n  dtype: bf16\n"),
            "F:2: model_config.dtype: expected one of bfloat16, float32, got bf16");
}

TEST(ReadConfig, SizesThatDoNotDivideTheWorldAreErrors) {
  EXPECT_EQ(error_of("parallel_config:\n  world_size: 8\n  attn_tp_size: 3\n"),
            "F:3: parallel_config.attn_tp_size: 3 does not divide world_size 8; write one of 1, 2, "
            "4, 8");
  EXPECT_EQ(error_of("parallel_config:\n  cp_size: 16\n"),
            "F:2: parallel_config.cp_size: 16 does not divide world_size 1; write one of 1");
  for (const Key& key : known_keys()) {
    if (!key.divides_world) continue;
    EXPECT_TRUE(contains(error_of(file_with(key, "3"), {"parallel_config.world_size=4"}),
                         "3 does not divide world_size 4"))
        << key.path();
  }
}

TEST(ReadConfig, DerivedSizesAreAcceptedWhenTheyAgree) {
  const std::string sizes =
      "parallel_config:\n  world_size: 8\n  attn_tp_size: 2\n  moe_tp_size: 4\n  embed_tp_size: "
      "8\n";
  EXPECT_EQ(error_of(sizes + "  attn_dp_size: 4\n  moe_ep_size: 2\n  embed_dp_size: 1\n"
                             "  cp_prefill_dp_size: 4\n",
                     kPath),
            "accepted");
  EXPECT_EQ(error_of(sizes + "  moe_ep_size: 8\n", kPath),
            "F:6: parallel_config.moe_ep_size: 8 disagrees with the other sizes, which give 2; "
            "leave it out");
  for (const char* name : {"attn_dp_size", "embed_dp_size", "cp_prefill_dp_size"}) {
    EXPECT_TRUE(contains(error_of(sizes + "  " + name + ": 3\n", kPath), "3 disagrees")) << name;
  }
}

TEST(ReadConfig, AKeyGivenTwiceIsAnError) {
  EXPECT_EQ(error_of("scheduler_config:\n  batch_size: 1\n  block_size: 128\n  batch_size: 1\n"),
            "F:4: scheduler_config.batch_size: given twice, first in line 2; keep one");
  EXPECT_EQ(error_of("data_config:\n  seed: 1\ndata_config:\n  seed: 1\n"),
            "F:3: data_config: given twice, first in line 1; keep one");
  EXPECT_EQ(error_of("{\"data_config\": {\"seed\": 1, \"seed\": 2}}"),
            "F:1: data_config.seed: given twice, first in line 1; keep one");
}

TEST(ReadConfig, WhatIsNoMapIsAnError) {
  EXPECT_EQ(error_of("- a\n- b\n"), "F:1: the file: expected keys with values, one a line");
  EXPECT_EQ(error_of("hello\n"), "F:1: the file: expected keys with values, one a line");
  EXPECT_EQ(error_of("\nmodel_config: 4\n"),
            "F:2: model_config: expected keys with values, one a line");
  EXPECT_EQ(error_of("model_config:\n  custom_params: [1]\n"),
            "F:2: model_config.custom_params: expected keys with values, one a line");
}

TEST(ReadConfig, ModelPathMustBeGiven) {
  EXPECT_EQ(error_of("# nothing\n"),
            "F: model_config.model_path: missing; write the directory of config.json");
  EXPECT_EQ(error_of("model_config:\n  model_path: ''\n"),
            "F: model_config.model_path: missing; write the directory of config.json");
}

TEST(ReadConfig, SyntaxErrorsNameTheLine) {
  EXPECT_EQ(error_of("model_config:\n\tmodel_path: m\n"),
            "F:2: not valid YAML: indent with spaces, not tabs");
  EXPECT_TRUE(contains(error_of("model_config:\n  model_path: m\n\tdtype: float32\n"),
                       "indent with spaces, not tabs"));
  EXPECT_TRUE(contains(error_of("a: b: c\n"), "F:1: not valid YAML: "));
  EXPECT_TRUE(contains(error_of("data_config: {seed: 1\n"), "F:2: not valid YAML: "));
  EXPECT_EQ(error_of("data_config:\n  seed: 1\n---\ndata_config:\n"),
            "F:4: a second document begins (---); write one");
  EXPECT_EQ(error_of("data_config:\n  ? [a]\n  : 1\n"),
            "F:2: a key must be a word, or a bracket is not closed");
  EXPECT_TRUE(contains(error_of("data_config:\n  seed: !!int \"1\"\n"), "F:2: tags (!)"));
}

TEST(ReadConfig, AnchorsAndAliasesAreRefused) {
  EXPECT_EQ(error_of("data_config:\n  seed: &a 1\n"),
            "F:2: anchors and aliases (&, *) are not used here; write the value out");
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c <= 'z'; ++c) {
    bomb += fmt::format("{0}: &{0} [*{1}, *{1}, *{1}, *{1}, *{1}, *{1}, *{1}, *{1}, *{1}]\n", c,
                        static_cast<char>(c - 1));
  }
  EXPECT_TRUE(contains(error_of(bomb), "F:1: anchors and aliases"));
}

TEST(ReadConfig, HostileFilesEndInOneLine) {
  constexpr size_t kBytes = 200'000;
  for (const char* piece : {"[",    "{",  "- ",   "? ",           "a: ",    "a:\n ", "'",   "\"",
                            "|\n",  "\t", "[a,",  "{a: {b: ",     "&a ",    "!t ",   "%a ", "---\n",
                            "\"\\", "*",  "\xff", "\xef\xbb\xbf", "k: v\n", ": ",    ",",   "]"}) {
    std::string text;
    while (text.size() < kBytes) text += piece;
    EXPECT_NE(error_of(text), "accepted") << piece;
  }
  std::string nested = "model_config: ";
  for (int depth = 0; depth < 9; ++depth) nested += "[";
  EXPECT_EQ(error_of(nested + std::string(9, ']')),
            "F:1: more than 8 maps and lists inside each other");
}

TEST(ReadConfig, BinaryFilesAreRefused) {
  EXPECT_EQ(error_of(std::string("data_config:\n  seed: \0\n", 23)),
            "F:2: byte 0x00: not a text file");
  EXPECT_EQ(error_of("\x7f"
                     "ELF\x02"),
            "F:1: byte 0x7f: not a text file");
  EXPECT_TRUE(contains(error_of(std::string("\xff\xfe"
                                            "a\0:\0",
                                            6)),
                       "not a text file"));
}

TEST(ReadConfig, LargeFilesAreRefusedUnread) {
  const auto path = write_file("# a comment\n");
  std::filesystem::resize_file(path, 2u << 20);  // sparse
  EXPECT_THROW(read_config(path, {}), UserError);
  std::filesystem::resize_file(path, uint64_t{1} << 40);
  EXPECT_THROW(read_config(path, {}), UserError);
  std::filesystem::remove(path);
}

TEST(ReadConfig, FilesThatCannotBeReadAreErrors) {
  EXPECT_THROW(read_config("/no/such.yaml", {}), UserError);
  EXPECT_THROW(read_config("/tmp", {}), UserError);
  EXPECT_THROW(read_config("/dev/zero", {}), UserError);
  EXPECT_THROW(read_config(write_file(""), {}), UserError);
}

TEST(Overrides, ReplaceTheFilesValues) {
  const std::string yaml = "model_config:\n  model_path: m\n  next_n: 1\n";
  const Config config =
      read(yaml, {"model_config.next_n=2", "model_config.custom_params.moe_chunk_max_len=99",
                  "data_config.dataset=a=b", "runtime_config.comm_timeout_s=2.5"});

  EXPECT_EQ(config.model.next_n, 2);
  EXPECT_EQ(config.model.moe_chunk_max_len, 99);
  EXPECT_EQ(config.data.dataset, "a=b");
  EXPECT_EQ(config.runtime.comm_timeout_s, 2.5);
  EXPECT_EQ(read(yaml, {"model_config.next_n=2", "model_config.next_n=3"}).model.next_n, 3);
}

TEST(Overrides, MendAWrongValueOfTheFile) {
  EXPECT_EQ(error_of("model_config:\n  model_path: m\n  next_n: 9\n", {"model_config.next_n=0"}),
            "accepted");
}

TEST(Overrides, ErrorsShowTheOverride) {
  EXPECT_EQ(error_of(kNothing, {"parallel_config.word_size=4"}),
            "--set parallel_config.word_size=4: unknown key; did you mean world_size?");
  EXPECT_EQ(error_of(kNothing, {"parallel_config.world_size=four"}),
            "--set parallel_config.world_size=four: expected an integer from 1 to 1024, got four");
  EXPECT_EQ(error_of(kNothing, {"parallel_config.world_size=4", "parallel_config.moe_tp_size=3"}),
            "--set parallel_config.moe_tp_size=3: 3 does not divide world_size 4; write one of 1, "
            "2, 4");
  EXPECT_EQ(error_of(kNothing, {"parallel_config.world_size="}),
            "--set parallel_config.world_size=: expected an integer from 1 to 1024, got nothing");
  EXPECT_TRUE(contains(error_of(kNothing, {"data_config.seed=[1"}),
                       "--set data_config.seed=[1: a key must be"));
  for (const char* text : {"", "=", "world_size=4", "parallel_config.world_size", "a.b"}) {
    EXPECT_TRUE(contains(error_of(kNothing, {text}), ": expected section.key=value")) << text;
  }
  EXPECT_TRUE(
      contains(error_of(kNothing, {"parallel_config={world_size: 4}"}), "section.key=value"));
  EXPECT_TRUE(contains(error_of(kNothing, {"model_config.custom_params=1"}), "unknown key"));
}

std::string refusal(const Overrides& overrides) {
  Overrides all = overrides;
  all.push_back(kPath[0]);
  try {
    require_runnable(read(kNothing, all));
  } catch (const UserError& error) {
    return error.what();
  }
  return "runs";
}

TEST(RequireRunnable, NamesTheKeyAndTheValueThatWorks) {
  EXPECT_EQ(refusal({"model_config.custom_params.enable_afd=True"}),
            "model_config.custom_params.enable_afd: True is valid, but this version runs only "
            "False (--set model_config.custom_params.enable_afd=False)");
  EXPECT_EQ(refusal({"model_config.custom_params.enable_afd=False"}), "runs");
}

TEST(RequireRunnable, RefusesEveryOtherValueOfARestrictedKey) {
  for (const Key& key : known_keys()) {
    std::vector<std::string> values{"True", "False"};
    if (key.type == Key::Type::kInteger) values = {"0", "1", "2", "3"};
    if (key.type == Key::Type::kChoice) {
      values.clear();
      for (const Choice& choice : key.choices) values.emplace_back(choice.name);
    }
    for (const std::string& value : values) {
      if (key.runnable.empty() || std::ranges::count(key.runnable, value) > 0) continue;
      if (key.type == Key::Type::kInteger &&
          (std::stoi(value) < key.min || std::stoi(value) > key.max))
        continue;
      const std::string message =
          refusal({"parallel_config.world_size=12", key.path() + "=" + value});
      EXPECT_TRUE(message.starts_with(key.path() + ": ")) << key.path() << "=" << value << message;
    }
  }
}

TEST(RequireRunnable, CountsWhatElseItRefuses) {
  Config config;
  config.model.enable_afd = true;
  const std::string first = not_runnable(config).at(0);
  ASSERT_EQ(not_runnable(config).size(), 1u);

  config.parallel = {.world_size = 4, .cp_size = 4};
  try {
    require_runnable(config);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.what(), first + "; and 1 more: troupe check lists them");
  }
}

}  // namespace
}  // namespace troupe::launcher
