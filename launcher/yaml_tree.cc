#include "launcher/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "model/json_file.h"

namespace troupe::launcher {
namespace {

struct SyntaxError {
  YAML::Mark mark;
  std::string text;
};

// Builds the tree from the parser's events, so that a document is refused before it has grown.
class TreeBuilder final : public YAML::EventHandler {
 public:
  YamlNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    place(mark, "", anchor).kind = YamlNode::Kind::kNull;
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (awaits_key()) {
      check_plain(mark, tag, anchor);
      open_.back().node->entries.push_back({.key = value, .line = mark.line + 1, .value = {}});
      open_.back().has_key = true;
      return;
    }
    YamlNode& node = place(mark, tag, anchor);
    node.kind = YamlNode::Kind::kScalar;
    node.text = value;
    node.quoted = tag == "!";
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override {
    open_.back().node->entries.clear();
    open_.pop_back();
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  struct Open {
    YamlNode* node;        // stays where it is: its siblings are added after it is closed
    bool has_key = false;  // of a map: the next event is the value of its last entry
  };

  bool awaits_key() const {
    return !open_.empty() && open_.back().node->kind == YamlNode::Kind::kMap &&
           !open_.back().has_key;
  }

  [[noreturn]] static void refuse_anchor(const YAML::Mark& mark) {
    throw SyntaxError{mark, "anchors and aliases (&, *) are not used here; write the value out"};
  }

  static void check_plain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    // "?" and "" mean no tag, "!" a quoted scalar.
    if (tag != "" && tag != "?" && tag != "!") {
      throw SyntaxError{mark, "tags (!) are not used here; write the value alone"};
    }
  }

  // Where the value that begins now belongs.
  YamlNode& place(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    check_plain(mark, tag, anchor);
    // The parser also takes an open bracket without its end for the start of a key.
    if (awaits_key()) throw SyntaxError{mark, "a key must be a word, or a bracket is not closed"};
    YamlNode* node = &root_;
    if (!open_.empty()) {
      auto& [parent, has_key] = open_.back();
      if (parent->kind == YamlNode::Kind::kList) parent->entries.assign(1, {});
      has_key = false;
      node = &parent->entries.back().value;
    }
    node->line = mark.line + 1;
    return *node;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (open_.size() == kMaxYamlDepth) {
      throw SyntaxError{
          mark, fmt::format("more than {} maps and lists inside each other", kMaxYamlDepth)};
    }
    YamlNode& node = place(mark, tag, anchor);
    node.kind = kind;
    open_.push_back({.node = &node});
  }

  YamlNode root_;
  std::vector<Open> open_;
};

void check_is_text(const std::string& text, const LineName& where) {
  const auto bad = std::find_if(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte == 0x7f || (byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r');
  });
  if (bad == text.end()) return;
  const auto line = 1 + std::count(text.begin(), bad, '\n');
  throw_user_error("{}: byte 0x{:02x}: not a text file", where(static_cast<int>(line)),
                   static_cast<unsigned char>(*bad));
}

// Whether white space before the first word of line `line` (from 0) holds a tab.
bool indented_by_tab(const std::string& text, int line) {
  size_t begin = 0;
  for (; line > 0 && begin != std::string::npos; --line) begin = text.find('\n', begin + 1);
  if (begin == std::string::npos) return false;
  const size_t word = text.find_first_not_of(" \t\n", begin);
  return text.substr(begin, word - begin).find('\t') != std::string::npos;
}

}  // namespace

YamlNode parse_yaml(const std::string& text, const LineName& where) {
  check_is_text(text, where);
  std::istringstream stream(text);
  TreeBuilder first, second;
  try {
    YAML::Parser parser(stream);
    if (parser.HandleNextDocument(first) && parser.HandleNextDocument(second)) {
      throw_user_error("{}: a second document begins (---); write one",
                       where(second.take_root().line));
    }
  } catch (const SyntaxError& error) {
    throw_user_error("{}: {}", where(error.mark.line + 1), error.text);
  } catch (const YAML::Exception& error) {
    throw_user_error("{}: not valid YAML: {}", where(error.mark.line + 1),
                     indented_by_tab(text, error.mark.line) ? "indent with spaces, not tabs"
                                                            : model::printable(error.msg));
  }
  return first.take_root();
}

}  // namespace troupe::launcher
