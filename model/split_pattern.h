// model/split_pattern.h: the regular expressions of tokenizer.json, which are written for Oniguruma
// (Ruby syntax), as patterns for PCRE2 that match the same.
//
// The two differ where it matters: \s (PCRE2 adds U+180E), Unicode's version, \v, \h, \x80 and up,
// ^,
// $, {n,m}+, && and nested classes. So the pattern is read, not passed on: what is known to mean
// the same is copied, \s, \d, \w and \p{category} are spelled out, and all else is refused.
#pragma once

#include <string>
#include <string_view>

namespace troupe::model {

// Understood: literals; \t \n \v \f \r \a \e \xHH \x{H...} \uHHHH; \s \d \p{category} and, outside
// classes, \S \D \P{category}; \w inside classes; classes of those and ranges; "."; groups ( (?:
// (?=
// (?! (?<= (?<! (?> and (?i: over ASCII letters, ' and |; * + ? with lazy ? or possessive +; {n}
// {n,} {n,m}; |. Throws std::invalid_argument saying what is not and where.
std::string split_pattern_to_pcre2(std::string_view pattern);

}  // namespace troupe::model
