// tests/fuzz/corpus.h: inputs to begin with.
#pragma once

#include <string>
#include <vector>

namespace troupe::fuzz {

// What corpus/TARGET holds, and files of the repository that the target reads; sorted.
std::vector<std::string> corpus(const std::string& target);

}  // namespace troupe::fuzz
