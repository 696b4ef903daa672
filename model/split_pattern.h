// model/split_pattern.h: the regular expressions of tokenizers, which are written for Oniguruma
// (Ruby syntax; tiktoken's mean the same there), as patterns for PCRE2 that match the same.
//
// The two differ where it matters: \s (PCRE2 adds U+180E), Unicode's version, \v, \h, \x80 and up,
// ^ and $, {n,m}+, && and classes in classes. So the pattern is read, not passed on: what is known
// to mean the same is copied, \s, \d, \w and \p{...} are spelled out, and all else is refused.
#pragma once

#include <string>
#include <string_view>

namespace troupe::model {

// Understood are
//   literals, "|", ".", "$", and the escapes \t \n \v \f \r \a \e \xHH \x{H...} \uHHHH
//   sets: \s \d \p{L} (any general category but C), outside classes also \S \D \P{L}
//   \p{Han}, the script
//   classes of characters, ranges and sets, in which \w is a set, too; one [^...] may be cut out of
//   them: [...&&[^...]]
//   the groups ( (?: (?= (?! (?<= (?<! (?> and (?i: over ASCII letters, "'" and "|"
//   repetitions: * + ? and their lazy and possessive forms, {n} {n,} {n,m}
// Throws std::invalid_argument saying what else was met, and where.
std::string split_pattern_to_pcre2(std::string_view pattern);

}  // namespace troupe::model
