// The table of keys against itself and against docs/configuration.md.
#include "launcher/config_keys.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

TEST(KnownKeys, DefaultsCanRun) { EXPECT_TRUE(not_runnable(Config{}).empty()); }

TEST(KnownKeys, AreListedOnceEachInAKnownSection) {
  for (const Key& key : known_keys()) {
    EXPECT_EQ(find_key(key.section, key.name), &key) << key.path();
    EXPECT_EQ(std::ranges::count(known_sections(), key.section), 1) << key.path();
  }
}

// docs/configuration.md has a heading "## `section`" and under it a row "| `key` | what is expected
// | default | meaning |" for every key; under "## Not in this version" a row "| `path` | what runs
// |" for every key that `run` restricts; and no other row of keys.
TEST(Documentation, ListsEveryKeyWithItsValuesAndDefault) {
  std::ifstream file(model::source_file("docs/configuration.md"));
  std::vector<std::string> rows;
  std::string heading;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("## ")) heading = line;
    if (line.starts_with("| `")) rows.push_back(heading + " " + line);
  }
  const auto expect_row = [&](const std::string& start, std::string_view part) {
    const auto row = std::ranges::find_if(
        rows, [&](const std::string& candidate) { return candidate.starts_with(start); });
    ASSERT_NE(row, rows.end()) << "no row: " << start;
    EXPECT_NE(row->find(part), std::string::npos) << *row << " does not say " << part;
    rows.erase(row);
  };
  for (const Key& key : known_keys()) {
    expect_row(fmt::format("## `{}` | `{}` | {} | {} | ", key.section, key.name, key.expected(),
                           value_text(key, Config{})),
               key.no_effect.empty() ? "" : "No effect");
    if (key.runnable.empty()) continue;
    expect_row(fmt::format("## Not in this version | `{}` | {} |", key.path(),
                           fmt::join(key.runnable, " or ")),
               "");
  }
  EXPECT_TRUE(rows.empty()) << "no such key: " << rows.front();
}

}  // namespace
}  // namespace troupe::launcher
