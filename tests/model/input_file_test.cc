// Files that are cut short or written to while they are read.
#include "model/input_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "model/weights.h"
#include "tests/model/files.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPage = 4096;

TEST(InputFile, IsTheFilesBytes) {
  const TemporaryDirectory directory;
  const InputFile file(directory.write("text", "some text"));

  EXPECT_EQ(file.text(), "some text");
  EXPECT_NO_THROW(file.require_unchanged());
}

TEST(InputFile, ThatIsCutShortReadsAsZerosAndIsAnErrorAfterwards) {
  const TemporaryDirectory directory;
  const fs::path path = directory.write("text", std::string(5 * kPage + 100, 'x'));
  const InputFile file(path), other(directory.write("other", std::string(2 * kPage, 'y')));
  fs::resize_file(path, kPage + 1);

  const std::string_view text = file.text();
  EXPECT_EQ(std::ranges::count(text.substr(0, kPage), 'x'), kPage);
  EXPECT_EQ(std::ranges::count(text.substr(2 * kPage), '\0'), 3 * kPage + 100);
  EXPECT_CONTAINS(user_error([&] { file.require_unchanged(); }),
                  path.string() + ": has changed while it was read");

  EXPECT_EQ(std::ranges::count(other.text(), 'y'), 2 * kPage);
  EXPECT_NO_THROW(other.require_unchanged());
}

TEST(InputFile, ThatIsWrittenToReplacedOrRemovedIsAnError) {
  const TemporaryDirectory directory;
  for (const auto& change : std::vector<std::function<void(const fs::path&)>>{
           [](const fs::path& path) {
             fs::last_write_time(path, fs::last_write_time(path) + std::chrono::seconds(1));
           },
           [&](const fs::path& path) { fs::rename(directory.write("new", "some text"), path); },
           [](const fs::path& path) { fs::remove(path); }}) {
    const fs::path path = directory.write("text", "some text");
    const InputFile file(path);
    EXPECT_NO_THROW(file.require_unchanged());
    change(path);

    EXPECT_EQ(file.text(), "some text");
    EXPECT_THROW(file.require_unchanged(), UserError);
  }
}

// As ranks do: sizes are known from the headers, then the data goes.
TEST(Weights, OfACheckpointThatIsCutShortWhileItLoadsAreAnErrorThatNamesTheFile) {
  const TemporaryDirectory copy;
  fs::copy(source_file("tests/goldens/ds3-tiny-bf16"), copy.path());
  const ModelConfig config = read_model_config(copy.path());
  const WeightLoader loader(copy.path(), config, ParallelLayout({}, config), {});
  std::vector<std::byte> shared(loader.shared_bytes());
  const fs::path shard = copy.path() / "model-00002-of-00003.safetensors";
  fs::resize_file(shard, fs::file_size(shard) / 2);

  EXPECT_CONTAINS(user_error([&] { loader.load(0, shared.data(), nullptr); }),
                  shard.string() + ": has changed while it was read");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// A SIGBUS that is no input file's still ends the process, as it did before.
TEST(InputFile, LeavesOtherBusErrorsToWhoHandledThem) {
  const TemporaryDirectory directory;
  const InputFile file(directory.write("text", "some text"));
  const auto read_beyond_the_end = [] {
    const Fd memory = create_shared_memory("test", 2 * kPage);
    const Mapping mapping(memory.get(), 2 * kPage, Mapping::Access::kReadOnly);
    if (::ftruncate(memory.get(), kPage) != 0) std::abort();
    const volatile std::byte* beyond = mapping.data() + kPage;
    std::exit(*beyond == std::byte{0});
  };

  EXPECT_EXIT(read_beyond_the_end(), testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(::raise(SIGBUS), testing::KilledBySignal(SIGBUS), "");
}
#endif

}  // namespace
}  // namespace troupe::model
