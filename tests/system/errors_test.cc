// What the user gets wrong ends in one line that says what, where and what to do: exit status 2, no
// output, before any work is done.
#include <gtest/gtest.h>

#include "tests/system/jobs.h"
#include "tests/system/model_copy.h"

namespace troupe::system_tests {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

// The line that `troupe words...` ends with.
std::string user_error(const Words& words, const TroupeProcess::Environment& environment = {}) {
  TroupeProcess process(words, environment);
  const Ended ended = process.wait();
  EXPECT_EQ(ended.status, 2) << ended.err;
  EXPECT_EQ(ended.out, "");
  const Words lines = ended.error_lines();
  EXPECT_EQ(lines.size(), 1) << ended.err;
  EXPECT_TRUE(process.processes().empty());
  if (lines.empty()) return "";
  EXPECT_TRUE(lines[0].starts_with("troupe: ")) << lines[0];
  return lines[0];
}

Words command(const std::string& name, const json& config,
              const model::TemporaryDirectory& directory, const Words& more) {
  Words words = command_line(name, config, {}, directory);
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

json tiny_config() { return configuration(tiny_moe(), 2, "bfloat16"); }

// Of `troupe run`.
std::string run_error(const json& config, const Words& more = {"--prompt-ids", "1,2"},
                      const TroupeProcess::Environment& environment = {}) {
  const model::TemporaryDirectory directory;
  return user_error(command("run", config, directory, more), environment);
}

std::string run_error_of(ModelCopy& copy) {
  return run_error(configuration(copy.write(), 2, "bfloat16"));
}

// ---- checkpoints ------------------------------------------------------------------------------

TEST(Checkpoint, ThatIsCutShortIsNamed) {
  const fs::path golden = golden_directory("ds3-tiny-fp8");
  const model::TemporaryDirectory copy;
  fs::copy(golden, copy.path());
  const fs::path shard = copy.path() / "model-00002-of-00003.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 100);

  const std::string error = run_error(configuration(copy.path(), 2, "bfloat16"));

  EXPECT_CONTAINS(error, shard.string());
}

TEST(Checkpoint, WithoutATensorSaysWhichIsMissing) {
  ModelCopy copy(golden_directory("ds3-tiny-bf16"));
  const std::string name = "model.layers.1.mlp.experts.5.up_proj.weight";
  copy.tensors().erase(name);

  const std::string error = run_error_of(copy);

  EXPECT_CONTAINS(error, copy.directory().path().string());
  EXPECT_CONTAINS(error, name);
}

TEST(Checkpoint, WithATensorOfAnotherShapeSaysBothShapes) {
  ModelCopy copy(golden_directory("ds3-tiny-bf16"));
  const std::string name = "model.layers.2.self_attn.o_proj.weight";  // [128, 256]
  std::ranges::reverse(copy.tensors().at(name).shape);

  const std::string error = run_error_of(copy);

  EXPECT_CONTAINS(error, name);
  EXPECT_CONTAINS(error, "[128, 256]");
  EXPECT_CONTAINS(error, "[256, 128]");
}

TEST(Checkpoint, WithValuesThatOnlyARankReadsIsTheUsersErrorToo) {
  ModelCopy copy(golden_directory("ds3-tiny-fp8"));
  const std::string name = "model.layers.1.mlp.experts.5.up_proj.weight";
  copy.tensors().at(name).bytes[77] = '\x7f';  // NaN

  const std::string error = run_error_of(copy);

  EXPECT_CONTAINS(error, name);
  EXPECT_CONTAINS(error, "NaN at [0, 77]");
}

TEST(ModelDirectory, ThatIsMissingIsNamed) {
  const std::string error = run_error(configuration("/no/such/model", 2, "bfloat16"));

  EXPECT_CONTAINS(error, "/no/such/model/config.json");
}

TEST(ModelConfig, WithAnImpossibleValueNamesFileAndKey) {
  ModelCopy copy(golden_directory("ds3-tiny-bf16"));
  copy.config["topk_method"] = "random";

  const std::string error = run_error_of(copy);

  EXPECT_CONTAINS(error, (copy.directory().path() / "config.json").string());
  EXPECT_CONTAINS(error, "topk_method");
  EXPECT_CONTAINS(error, "noaux_tc");
}

// ---- configurations ---------------------------------------------------------------------------

TEST(Configuration, ThatIsMissingIsNamed) {
  EXPECT_CONTAINS(user_error({"run", "--config", "/no/such.yaml", "--prompt-ids", "1"}),
                  "/no/such.yaml");
}

TEST(Configuration, WithAnUnknownKeyNamesTheNearestOne) {
  json config = tiny_config();
  config["scheduler_config"]["batch_sise"] = 4;

  const std::string error = run_error(config);

  EXPECT_CONTAINS(error, "config.json:1: scheduler_config.batch_sise");
  EXPECT_CONTAINS(error, "did you mean batch_size?");
}

TEST(Configuration, ThatThisVersionCannotRunIsRefusedByName) {
  json config = tiny_config();
  config["parallel_config"]["cp_size"] = 2;

  EXPECT_CONTAINS(run_error(config), "--set parallel_config.cp_size=1");
}

TEST(Configuration, WithRanksThatDoNotDivideTheExpertsSaysWhatWould) {
  json config = tiny_config();
  config["parallel_config"]["world_size"] = 3;

  const std::string error = run_error(config);

  EXPECT_CONTAINS(error, "16 experts");
  EXPECT_CONTAINS(error, "moe_tp_size must be one of 3, or world_size one of 1, 2, 4, 8, 16");
}

TEST(Configuration, WithDraftsOfAModelWithoutMtpLayerNamesTheKey) {
  json config = configuration(golden_directory("ds-v2-lite-tiny"), 2, "bfloat16");
  config["model_config"]["next_n"] = 1;

  const std::string error = run_error(config);

  EXPECT_CONTAINS(error, "ds-v2-lite-tiny/config.json");
  EXPECT_CONTAINS(error, "model_config.next_n");
}

TEST(Configuration, OfAnUnknownInstructionSetListsTheKnown) {
  const std::string error =
      run_error(tiny_config(), {"--prompt-ids", "1"}, {{"TROUPE_ISA", "nonsense"}});

  EXPECT_CONTAINS(error, "TROUPE_ISA=nonsense");
  EXPECT_CONTAINS(error, "scalar, avx2, avx512 or avx512_bf16");
}

TEST(Configuration, ThatNeedsMoreMemoryThanThereIsSaysHowMuchWhereAndWhatLowersIt) {
  json config = tiny_config();
  config["runtime_config"]["device_memory_gb"] = 0.02;

  const std::string error = run_error(config);

  EXPECT_CONTAINS(error, "rank 0 needs");
  EXPECT_CONTAINS(error, "16.0 MiB for windows");
  EXPECT_CONTAINS(error, "mem_fraction_static 0.85 of 20.5 MiB");
  EXPECT_CONTAINS(error, "weight_format int8");
  EXPECT_CONTAINS(error, "raise runtime_config.device_memory_gb");
}

// ---- command lines ----------------------------------------------------------------------------

TEST(CommandLine, WithoutCommandAsksForOneAndAnUnknownOneIsNamed) {
  EXPECT_CONTAINS(user_error({}), "A command is required");
  EXPECT_CONTAINS(user_error({"rum", "--config", "tiny_moe.yaml"}), "rum");
}

TEST(CommandLine, WithoutConfigAsksForIt) {
  EXPECT_CONTAINS(user_error({"run", "--prompt-ids", "1"}), "--config");
}

TEST(CommandLine, WithAnUnknownOptionNamesIt) {
  EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt-ids", "1", "--fast"}), "--fast");
}

TEST(CommandLine, WithAMisspeltWordNamesTheNearest) {
  EXPECT_CONTAINS(user_error({"rum", "--config", "x"}),
                  "rum: nothing known by that name; did you mean run?");
  EXPECT_CONTAINS(user_error({"run", "--confg", "x"}), "did you mean --config?");
  EXPECT_CONTAINS(user_error({"bench", "decod", "--config", "x"}), "did you mean decode?");
  EXPECT_CONTAINS(user_error({"run", "--log-levl=debug", "--config", "x"}),
                  "did you mean --log-level?");
}

TEST(CommandLine, WithANumberOutOfItsRangeSaysTheRange) {
  struct Wrong {
    Words words;
    std::string says;
  };
  const Wrong wrongs[] = {
      {{"serve", "--config", "x", "--port", "99999"},
       "--port: expected an integer from 0 to 65535, got 99999"},
      {{"serve", "--config", "x", "--port", ""},
       "--port: expected an integer from 0 to 65535, got nothing"},
      {{"serve", "--config", "x", "--idle-timeout", "soon"},
       "--idle-timeout: expected a number from 0.001 to 86400, got soon"},
      {{"run", "--config", "x", "--n", "0"}, "--n: expected an integer from 1 to 1024, got 0"},
      {{"run", "--config", "x", "--n", "1.5"}, "from 1 to 1024, got 1.5"},
      {{"bench", "decode", "--config", "x", "--tokens", "99999999999999999999"},
       "--tokens: expected an integer from 1 to 16777216, got 99999999999999999999"},
      {{"bench", "collectives", "--ranks", "2,0"},
       "--ranks: expected an integer from 1 to 1024, got 0"},
      {{"bench", "moe", "--tokens", "many"}, "--tokens: expected an integer from 1 to 4096"},
      {{"bench", "moe", "--seconds", "-1"},
       "--seconds: expected a number from 0.001 to 60, got -1"},
      {{"bench", "serve", "--config", "x", "--rate", "nan"}, "--rate: expected a number from 0 to"},
      {{"status", "-1"}, "pid: expected an integer from 1 to 2147483647, got -1"},
      {{"top", "--count", "0"}, "--count: expected an integer from 1 to 1000000, got 0"},
      {{"eplb", "--config", "x", "--counts", "x", "--output", "x", "--nodes", "two"},
       "--nodes: expected an integer from 1 to 1024, got two"}};
  for (const Wrong& wrong : wrongs) {
    SCOPED_TRACE(wrong.says);
    EXPECT_CONTAINS(user_error(wrong.words), wrong.says);
  }
}

TEST(CommandLine, WithAnEmptyValueSaysWhichOption) {
  for (const char* option : {"--json", "--trace", "--prompt-file", "--config"})
    EXPECT_CONTAINS(user_error({"run", option, ""}),
                    std::string(option) + ": expected a value, got nothing");
  EXPECT_CONTAINS(user_error({"convert", "--input", "", "--output", "x", "--quant-mode", "x"}),
                  "--input: expected a value, got nothing");
  EXPECT_CONTAINS(user_error({"--log-dir", "", "run", "--config", "x"}), "--log-dir: expected");
}

TEST(CommandLine, CutShortSaysWhatIsMissing) {
  EXPECT_CONTAINS(user_error({"trace"}), "trace: write one of summary, merge, html behind it");
  EXPECT_CONTAINS(user_error({"trace", "summary"}),
                  "directory is required (see troupe trace summary");
  EXPECT_CONTAINS(user_error({"run", "--config"}), "--config: its value is missing");
  EXPECT_CONTAINS(user_error({"run", "--config", "a", "--config", "b"}),
                  "--config: given more than once");
}

TEST(Configuration, ThatIsMissingSaysWhereItWasLookedFor) {
  EXPECT_CONTAINS(user_error({"run", "--config", "no_such.yaml", "--prompt-ids", "1"}),
                  "(looked in " + fs::current_path().string() + ")");
}

TEST(CommandLine, WithoutPromptSaysHowToGiveOne) {
  const std::string error = run_error(tiny_config(), {});

  EXPECT_CONTAINS(error, "--prompt TEXT");
  EXPECT_CONTAINS(error, "data_config.dataset_path");
}

TEST(CommandLine, WithUnknownDumpItemsListsTheKnown) {
  const model::TemporaryDirectory directory;
  const std::string dump = directory.path() / "dump.safetensors";

  const std::string error =
      user_error(command("score", tiny_config(), directory,
                         {"--prompt-ids", "1", "--dump", dump, "--dump-items", "logits,routing"}));

  EXPECT_CONTAINS(error, "routing");
  EXPECT_CONTAINS(error, "logits, router, mtp");
  EXPECT_FALSE(fs::exists(dump));
}

TEST(CommandLine, WithAReportThatCannotBeWrittenFailsBeforeTheRun) {
  EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt-ids", "1", "--json", "/no/such/report.json"}),
                  "/no/such/report.json");
}

TEST(CommandLine, WithAReportOverSomethingElseThanAFileLeavesItAlone) {
  const model::TemporaryDirectory directory;
  const std::string link = directory.path() / "link";
  fs::create_symlink("elsewhere", link);
  EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt-ids", "1", "--json", link}),
                  "link: is not a regular file");
  EXPECT_TRUE(fs::is_symlink(link));
}

// ---- prompts ----------------------------------------------------------------------------------

TEST(Prompt, WithATokenOutsideTheVocabularyNamesBoth) {
  const std::string error =
      run_error(tiny_config(), {"--prompt-ids", "1,2", "--prompt-ids", "7,4096"});

  EXPECT_CONTAINS(error, "prompt 1");
  EXPECT_CONTAINS(error, "4096");
  EXPECT_CONTAINS(error, "0 .. 4095");
}

TEST(Prompt, OfIdsThatAreNoNumbersShowsThem) {
  for (const char* ids : {"1,x", "1,,2", "", "3,-1", "1;2", "99999999999"}) {
    SCOPED_TRACE(ids);
    EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt-ids", ids}), fmt::format("\"{}\"", ids));
  }
}

TEST(Prompt, WithoutAnyTokenIsRefused) {
  const model::TemporaryDirectory copy;
  fs::copy(tiny_moe(), copy.path());
  json tokenizer = json::parse(model::read_file(tiny_moe() / "tokenizer_config.json"));
  tokenizer["add_bos_token"] = false;  // with it an empty text is one token
  copy.write("tokenizer_config.json", tokenizer.dump());

  const std::string error = run_error(configuration(copy.path(), 2, "bfloat16"), {"--prompt", ""});

  EXPECT_CONTAINS(error, "prompt 0");
  EXPECT_CONTAINS(error, "must not be empty");
}

TEST(Prompt, LongerThanTheModelReadsSaysBothLengths) {
  const std::string error = run_error(tiny_config(), {"--prompt-ids", joined(Ids(2049, 7))});

  EXPECT_CONTAINS(error, "2049");
  EXPECT_CONTAINS(error, "max_position_embeddings 2048");
}

TEST(Prompt, ThatIsNotUtf8SaysWhere) {
  EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt", "One \xff"}), "not UTF-8 at byte 4");
}

TEST(Prompt, OfAModelWithoutTokenizerAsksForIds) {
  const json config = configuration(golden_directory("ds3-tiny-bf16"), 2, "bfloat16");

  EXPECT_CONTAINS(run_error(config, {"--prompt", "Once"}), "--prompt-ids");
}

TEST(TextFile, ThatIsMissingOrEmptySaysWhich) {
  const model::TemporaryDirectory directory;
  const std::string empty = directory.write("empty.txt", ""), missing = empty + ".gz";
  const auto score_error = [&](const std::string& file) {
    return user_error(command("score", tiny_config(), directory, {"--text-file", file}));
  };

  EXPECT_CONTAINS(score_error(empty), empty + ": is empty");
  EXPECT_CONTAINS(score_error(missing), missing + ": cannot be opened: No such file or directory");
}

TEST(PromptFile, ThatIsNoJsonIsNamed) {
  const model::TemporaryDirectory directory;
  const std::string file = directory.write("prompts.json", "Once upon a time");

  EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt-file", file}), file);
}

TEST(PromptFile, WithAnEntryThatIsNoTextSaysWhich) {
  const model::TemporaryDirectory directory;
  const std::string file = directory.write("prompts.json", R"(["Once", {"txt": "upon"}])");

  EXPECT_CONTAINS(run_error(tiny_config(), {"--prompt-file", file}), file + ": prompt 1");
}

// ---- and when nothing is wrong ----------------------------------------------------------------

TEST(CleanEnd, PrintsNothingToStderrAtLogLevelErrorWhereverThatIsWritten) {
  const model::TemporaryDirectory directory;
  const Words words = command("run", tiny_config(), directory, {"--prompt", "Once upon a time"});
  Words after{words.begin() + 2, words.end()};  // without --log-level error
  after.insert(after.begin() + 1, {"--log-level", "error"});

  for (const Words& line : {words, after}) {
    const Ended ended = run_troupe(line);

    EXPECT_EQ(ended.status, 0);
    EXPECT_EQ(ended.err, "");
    EXPECT_CONTAINS(ended.out, "there was a little girl named Lily.");
  }
}

TEST(CleanEnd, PrintsNothingToStderrWhateverTheCommand) {
  const model::TemporaryDirectory directory;
  const std::string text = directory.write("text", "One day"), model = tiny_moe();
  json config = configuration(model, 4, "bfloat16");
  config["model_config"]["next_n"] = 1;
  const std::string file = directory.write("config.json", config.dump());
  const Words with_file{"--config", file};

  for (const auto& [words, more] : std::vector<std::pair<Words, Words>>{
           {{"score"}, {"--text-file", text}},
           {{"verify"}, {"--prompt-ids", "1,2,3"}},
           {{"chat"}, {}},
           {{"check"}, {}},
           {{"explain"}, {}},
           {{"bench", "decode"}, {"--tokens", "2", "--repeat", "1"}},
           {{"bench", "serve"}, {"--requests", "2", "--rate", "0", "--output", "2"}}}) {
    Words line{"--log-level", "error"};
    for (const Words& part : {words, with_file, more})
      line.insert(line.end(), part.begin(), part.end());
    const Ended ended = run_troupe(line);

    EXPECT_EQ(ended.status, 0) << words[0];
    EXPECT_EQ(ended.err, "") << words[0];
  }
  for (const Words& words : {Words{"tokenize", "--tokenizer", model, "--text", "One day"},
                             Words{"inspect", model}, Words{"man"}, Words{"completion", "bash"}}) {
    const Ended ended = run_troupe(words);

    EXPECT_EQ(ended.status, 0) << words[0];
    EXPECT_EQ(ended.err, "") << words[0];
  }
}

}  // namespace
}  // namespace troupe::system_tests
