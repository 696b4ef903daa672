// model/regex.h: the matches of a pattern in a text, by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>

namespace troupe::model {

// Safe to use from several threads, each with a Scratch of its own.
class Regex {
 public:
  enum class Syntax {
    kPcre2,    // a PCRE2 pattern, in UTF mode with Unicode properties
    kLiteral,  // the text itself
  };
  // Throws std::invalid_argument with PCRE2's words when the pattern does not compile.
  Regex(std::string_view pattern, Syntax syntax);
  ~Regex();
  Regex(Regex&&) noexcept;

  // What matching with one pattern needs besides the pattern; reusable from text to text.
  class Scratch {
   public:
    explicit Scratch(const Regex& regex);
    ~Scratch();
    Scratch(Scratch&&) noexcept;

   private:
    friend class Regex;
    struct Data;
    std::unique_ptr<Data> data_;
  };

  struct Match {
    size_t begin, end;  // bytes
  };

  // Walks over the matches in one text, which is valid UTF-8 and outlives the walk. Matches do not
  // overlap; an empty one right after the match before is passed over, as in Rust's onig.
  class Matches {
   public:
    Matches(const Regex& regex, Scratch& scratch, std::string_view text);
    // Throws UserError when the pattern takes more steps on this text than any sane one does.
    std::optional<Match> next();

   private:
    std::optional<Match> search();

    const Regex& regex_;
    Scratch& scratch_;
    std::string_view text_;
    size_t at_ = 0;
    std::optional<size_t> last_end_;
  };

  // Whether there is a match anywhere in the text.
  bool matches(Scratch& scratch, std::string_view text) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace troupe::model
