#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <random>

#include "tests/model/files.h"
#include "tests/model/page_cache.h"

namespace troupe::model {
namespace {

using nlohmann::json;

// Two tensors, 8 and 6 bytes.
const char* const kHeader =
    R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
    R"("b":{"dtype":"BF16","shape":[3,1],"data_offsets":[8,14]},"__metadata__":{"format":"pt"}})";
const std::string kData("01234567abcdef");

std::string error_of_bytes(const std::string& bytes) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.write("x.safetensors", bytes);
  const std::string error = user_error([&] { SafetensorsFile file(path); });
  EXPECT_CONTAINS(error, path.string());
  return error;
}

std::string error_of(const std::string& header, const std::string& data = kData) {
  return error_of_bytes(safetensors_bytes(header, data));
}

// One tensor "t" over 8 bytes of data.
std::string error_of_tensor(const std::string& entry) {
  const std::string error = error_of(R"({"t":)" + entry + "}", "01234567");
  EXPECT_CONTAINS(error, "tensor 't'");
  return error;
}

TEST(SafetensorsFile, GivesOutEveryTensor) {
  const TemporaryDirectory directory;
  const SafetensorsFile file(directory.write("x", safetensors_bytes(kHeader, kData)));

  ASSERT_EQ(file.tensors().size(), 2);
  const Tensor& b = file.tensors().at("b");
  EXPECT_EQ(b.dtype, Dtype::kBf16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.data), b.bytes), "abcdef");
}

TEST(SafetensorsFile, TensorsMayBeEmptyScalarOrOfATypeWeDoNotUse) {
  const TemporaryDirectory directory;
  const SafetensorsFile file(directory.write(
      "x", safetensors_bytes(R"({"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
                             R"("s":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})",
                             "01234567")));

  EXPECT_EQ(file.tensors().at("e").bytes, 0);
  EXPECT_EQ(file.tensors().at("s").dtype, Dtype::kOther);
}

TEST(SafetensorsFile, TruncatedAnywhereIsAnError) {
  const std::string whole = safetensors_bytes(kHeader, kData);
  for (size_t length = 0; length < whole.size(); ++length) error_of_bytes(whole.substr(0, length));
  error_of_bytes(whole + "x");
}

TEST(SafetensorsFile, HeaderLengthIsBounded) {
  const std::string rest = kHeader + kData;
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{rest.size() + 1},
                                uint64_t{1} << 31, uint64_t{1} << 63, UINT64_MAX}) {
    const std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
    const std::string error = error_of_bytes(bytes + rest);
    EXPECT_CONTAINS(error, length <= 1 ? "header: not valid JSON" : "header length");
  }
}

TEST(SafetensorsFile, OverlapsAndGapsAreErrors) {
  const auto two = [](const char* a, const char* b) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                       R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                       a, b);
  };
  EXPECT_CONTAINS(error_of(two("[0,4]", "[3,7]"), "1234567"), "tensor 'b' begins at offset 3");
  EXPECT_CONTAINS(error_of(two("[0,4]", "[0,4]"), "1234"), "tensor 'b' begins at offset 0");
  EXPECT_CONTAINS(error_of(two("[5,9]", "[0,4]"), "123456789"), "tensor 'a' begins at offset 5");
  EXPECT_CONTAINS(error_of(two("[1,5]", "[5,9]"), "123456789"), "tensor 'a' begins at offset 1");
  EXPECT_CONTAINS(error_of(two("[0,4]", "[4,8]"), "123456789"), "end at offset 8");
  EXPECT_CONTAINS(error_of(two("[0,4]", "[4,8]"), "1234567"), "tensor 'b' ends at offset 8");
}

TEST(SafetensorsFile, ATensorAppearsOnce) {
  EXPECT_CONTAINS(error_of(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                           R"("t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                           "01234567"),
                  "tensor 't' appears twice");
}

TEST(SafetensorsFile, ShapesTypesAndOffsetsAreChecked) {
  EXPECT_CONTAINS(error_of_tensor(R"({"dtype":"F9","shape":[8],"data_offsets":[0,8]})"),
                  "unknown type \"F9\"");
  EXPECT_CONTAINS(error_of_tensor(R"({"dtype":8,"shape":[8],"data_offsets":[0,8]})"), "type 8");
  error_of_tensor(R"({"shape":[8],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[-8],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[-2,-4],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[8.0],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":["8"],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":8,"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[7],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"F32","shape":[8],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[8],"data_offsets":[8,0]})");
  error_of_tensor(R"({"dtype":"U8","shape":[8],"data_offsets":[0,8,8]})");
  error_of_tensor(R"({"dtype":"U8","shape":[8],"data_offsets":[-8,0]})");
  error_of_tensor(R"({"dtype":"U8","shape":[9],"data_offsets":[0,9]})");
  error_of_tensor(
      R"({"dtype":"U8","shape":[8],"data_offsets":[18446744073709551608,18446744073709551615]})");
  // Products that wrap around to 8 bytes, or to none.
  error_of_tensor(
      R"({"dtype":"F32","shape":[4611686018427387904,4611686018427387906],"data_offsets":[0,8]})");
  error_of_tensor(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})");
  error_of_tensor(R"({"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8]})");
  error_of_tensor("[1,2]");
  error_of_tensor("7");
}

TEST(SafetensorsFile, HeadersThatAreNoTableOfTensorsAreErrors) {
  for (const char* header : {"", "5", "[]", "null", "{", "{\"a\":", "{\"t\":{}} x", "\"t\""})
    error_of(header, "");
  std::string many = "0";
  for (int i = 0; i < 1000; ++i) many += ",0";
  error_of(R"({"t":{"dtype":"U8","shape":[)" + many + R"(],"data_offsets":[0,0]}})", "");
}

TEST(SafetensorsFile, DeepHeadersAreRefusedBeforeTheyAreBuilt) {
  constexpr int kDepth = 100000;
  const std::string lists = std::string(kDepth, '[') + std::string(kDepth, ']');
  std::string objects;
  for (int i = 0; i < kDepth; ++i) objects += "{\"a\":";
  objects += "0" + std::string(kDepth, '}');
  for (const std::string& deep : {lists, objects}) {
    EXPECT_CONTAINS(error_of(deep), "nested deeper than 64");
    EXPECT_CONTAINS(error_of(R"({"t":)" + deep + "}"), "nested deeper than 64");
    EXPECT_CONTAINS(error_of(R"({"__metadata__":)" + deep + "}"), "nested deeper than 64");
  }
}

TEST(SafetensorsFile, ALongOrUnprintableNameDoesNotSpoilTheMessage) {
  const std::string error = error_of(R"({"\n)" + std::string(5000, 'n') + R"(":{"dtype":"F9"}})");
  EXPECT_LT(error.size(), 500);
}

TEST(SafetensorsFile, OddFilesAreOneError) {
  const TemporaryDirectory directory;
  EXPECT_CONTAINS(user_error([&] { SafetensorsFile file(directory.path()); }), "is a directory");
  EXPECT_CONTAINS(user_error([&] { SafetensorsFile file(directory.path() / "none"); }), "none");
  EXPECT_CONTAINS(user_error([&] { SafetensorsFile file(directory.write("e", "")); }), "is empty");
  ASSERT_EQ(::mkfifo((directory.path() / "fifo").c_str(), 0600), 0);
  EXPECT_CONTAINS(user_error([&] { SafetensorsFile file(directory.path() / "fifo"); }), "pipe");
}

// Whatever bytes change, the file is read or refused: nothing else happens.
TEST(SafetensorsFile, DamagedHeadersAreReadOrRefused) {
  const TemporaryDirectory directory;
  const std::string whole = safetensors_bytes(kHeader, kData);
  const std::filesystem::path path = directory.write("x", whole);
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = whole;
    for (int i = 0; i <= round % 3; ++i)
      damaged[random() % (whole.size() - kData.size())] =
          round % 2 != 0 ? static_cast<char>(random()) : "0123456789[]{},:\"-e."[random() % 20];
    std::fstream(path, std::ios::binary | std::ios::in | std::ios::out) << damaged;
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, tensor] : file.tensors())
        for (size_t i = 0; i < tensor.bytes; ++i) EXPECT_NE(tensor.data[i], std::byte{0});
    } catch (const UserError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 2000);
}

class CheckpointFiles : public testing::Test {
 protected:
  void SetUp() override {
    directory_.write("one.safetensors", safetensors_bytes(kHeader, kData));
    directory_.write(
        "two.safetensors",
        safetensors_bytes(R"({"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "c"));
  }
  std::string error_of_index(const std::string& text) {
    directory_.write("model.safetensors.index.json", text);
    return user_error([&] { Checkpoint checkpoint(directory_.path()); });
  }
  std::string error_of_file_name(const std::string& name) {
    return error_of_index(json{{"weight_map", {{"a", name}}}}.dump());
  }

  TemporaryDirectory directory_;
};

TEST_F(CheckpointFiles, TensorsComeFromTheFilesTheIndexNames) {
  directory_.write("model.safetensors.index.json",
                   R"({"weight_map":{"b":"one.safetensors","c":"two.safetensors"}})");
  const Checkpoint checkpoint(directory_.path());

  EXPECT_EQ(checkpoint.find("a"), nullptr);  // in the file, but not in the index
  ASSERT_NE(checkpoint.find("c"), nullptr);
  EXPECT_EQ(checkpoint.total_bytes(), 7);
  EXPECT_EQ(checkpoint.require("b", {3, 1}).bytes, 6);
}

TEST_F(CheckpointFiles, ASingleFileNeedsNoIndex) {
  directory_.write("model.safetensors", safetensors_bytes(kHeader, kData));
  EXPECT_NE(Checkpoint(directory_.path()).find("a"), nullptr);
}

TEST_F(CheckpointFiles, RequireNamesTensorAndShapes) {
  directory_.write("model.safetensors", safetensors_bytes(kHeader, kData));
  const Checkpoint checkpoint(directory_.path());

  EXPECT_EQ(
      user_error([&] {
        checkpoint.require("b", {3, 2});
      }),
      directory_.path().string() + ": tensor 'b' has shape [3, 1]; config.json asks for [3, 2]");
  EXPECT_CONTAINS(user_error([&] { checkpoint.require("z", {1}); }), "tensor 'z' is missing");
}

TEST_F(CheckpointFiles, OnlyPlainNamesAreOpened) {
  for (const std::string& name :
       {std::string("../one.safetensors"), std::string("/etc/passwd"),
        std::string("./one.safetensors"), std::string("sub/one"), std::string(".."),
        std::string("."), std::string(), std::string("one.safetensors\0x", 17)})
    EXPECT_CONTAINS(error_of_file_name(name), "weight_map.a");
}

TEST_F(CheckpointFiles, AnIndexThatDoesNotHoldIsAnError) {
  EXPECT_CONTAINS(error_of_file_name("three.safetensors"), "three.safetensors");
  EXPECT_CONTAINS(error_of_file_name("two.safetensors"), "two.safetensors: tensor 'a'");
  EXPECT_CONTAINS(error_of_index("{}"), "weight_map");
  EXPECT_CONTAINS(error_of_index("[]"), "weight_map");
  EXPECT_CONTAINS(error_of_index(R"({"weight_map":[]})"), "weight_map");
  EXPECT_CONTAINS(error_of_index(R"({"weight_map":{"a":1}})"), "weight_map.a is 1");
  EXPECT_CONTAINS(error_of_index(std::string(100000, '[')), "index.json");
}

TEST_F(CheckpointFiles, ADirectoryWithoutCheckpointIsAnError) {
  EXPECT_CONTAINS(user_error([&] { Checkpoint checkpoint(directory_.path()); }),
                  "neither model.safetensors.index.json nor model.safetensors");
}

TEST(PageCache, ForgetsACheckpointOnRequest) {
  const TemporaryDirectory directory;
  if (!has_page_cache(directory.path())) GTEST_SKIP() << "a tmpfs is nowhere but in memory";
  constexpr size_t kBytes = 4 << 20;
  const auto path = directory.write("model-1.safetensors", std::string(kBytes, 'x'));
  const auto other = directory.write("tokenizer.json", std::string(kBytes, 'x'));
  ::sync();  // only pages that are on disk can be forgotten
  ASSERT_GT(num_cached_pages(path), 0u);

  drop_from_page_cache(directory.path());

  EXPECT_EQ(num_cached_pages(path), 0u);
  EXPECT_GT(num_cached_pages(other), 0u);
  EXPECT_EQ(read_file(path), std::string(kBytes, 'x'));
}

size_t num_entries(const std::filesystem::path& directory) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(directory), {}));
}

TEST(SafetensorsWriter, WritesPiecesOfTensorsInAnyOrder) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "out.safetensors";
  SafetensorsWriter writer(
      path,
      {{"bytes", Dtype::kU8, {3}}, {"floats", Dtype::kF32, {2, 2}}, {"none", Dtype::kBf16, {0}}});
  const float floats[] = {1, 2, 3, 4};
  writer.write("floats", 2, floats + 2, 2);
  writer.write("bytes", 0, "xyz", 3);
  writer.write("floats", 0, floats, 2);
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.finish();

  const SafetensorsFile file(path);
  const Tensor& read = file.tensors().at("floats");
  EXPECT_EQ(read.shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::memcmp(read.data, floats, sizeof floats), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(read.data) % sizeof(float), 0);
  EXPECT_EQ(std::memcmp(file.tensors().at("bytes").data, "xyz", 3), 0);
  EXPECT_EQ(file.tensors().at("none").bytes, 0);
}

TEST(SafetensorsWriter, ReplacesAnOlderFileOnlyAtTheEnd) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.write("out.safetensors", "old");
  { SafetensorsWriter abandoned(path, {{"t", Dtype::kU8, {1}}}); }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(num_entries(directory.path()), 1);

  SafetensorsWriter writer(path, {{"t", Dtype::kU8, {1}}});
  writer.write("t", 0, "n", 1);
  EXPECT_EQ(read_file(path), "old");
  writer.finish();

  EXPECT_EQ(*SafetensorsFile(path).tensors().at("t").data, std::byte{'n'});
  EXPECT_EQ(num_entries(directory.path()), 1);
}

TEST(SafetensorsWriter, AKilledProcessLeavesNothingBehind) {
  const TemporaryDirectory directory;
  if (::open(directory.path().c_str(), O_TMPFILE | O_RDWR, 0600) < 0)
    GTEST_SKIP() << "no O_TMPFILE on this file system";
  const pid_t child = ::fork();
  if (child == 0) {
    SafetensorsWriter writer(directory.path() / "out", {{"t", Dtype::kU8, {1}}});
    writer.write("t", 0, "n", 1);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);

  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(num_entries(directory.path()), 0);
}

TEST(SafetensorsWriter, AFileThatCannotBeWrittenIsNamed) {
  const TemporaryDirectory directory;
  const std::vector<SafetensorsWriter::Entry> entries{{"t", Dtype::kU8, {1 << 20}}};
  EXPECT_CONTAINS(
      user_error([&] { SafetensorsWriter writer(directory.path() / "none" / "out", entries); }),
      "none/out: cannot be created");

  // Neither would get the tensors: each would be replaced by a file of its name.
  ASSERT_EQ(::mkfifo((directory.path() / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("pipe", directory.path() / "link");
  for (const char* name : {"pipe", "link"})
    EXPECT_CONTAINS(user_error([&] { SafetensorsWriter writer(directory.path() / name, entries); }),
                    std::string(name) + ": is not a regular file");
  EXPECT_TRUE(std::filesystem::is_fifo(directory.path() / "pipe"));
  EXPECT_TRUE(std::filesystem::is_symlink(directory.path() / "link"));
  std::filesystem::remove(directory.path() / "pipe");
  std::filesystem::remove(directory.path() / "link");

  struct rlimit limit;  // stands in for a full disk
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const struct rlimit small { 4096, limit.rlim_max };
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error =
      user_error([&] { SafetensorsWriter writer(directory.path() / "out", entries); });
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, SIG_DFL);
  EXPECT_CONTAINS(error, "out: cannot be written");
  EXPECT_EQ(num_entries(directory.path()), 0);
}

}  // namespace
}  // namespace troupe::model
