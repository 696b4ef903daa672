// launcher/yaml_tree.h: a small YAML document as a tree of values that remember their lines.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace troupe::launcher {

struct YamlEntry;

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  int line = 1;
  std::string text;                // of a scalar
  bool quoted = false;             // "4" is a string, 4 a number
  std::vector<YamlEntry> entries;  // of a map, in the file's order; what a list holds is not kept
};

struct YamlEntry {
  std::string key;
  int line = 1;
  YamlNode value;
};

// "config.yaml:12" or whatever else tells the user where line `line` is.
using LineName = std::function<std::string(int line)>;

// Parses one document; JSON is a subset. Meant for files of people and for hostile ones: no
// anchors, aliases or tags, at most kMaxYamlDepth maps and lists inside each other, no binary
// bytes, so that time and memory stay proportional to the text. Throws UserError with where(line).
inline constexpr int kMaxYamlDepth = 8;
YamlNode parse_yaml(const std::string& text, const LineName& where);

}  // namespace troupe::launcher
