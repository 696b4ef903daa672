// launcher/nearest_name.h: what a misspelt name was meant to be.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::launcher {

// Characters put in, left out or replaced that make `b` of `a` (Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// "; did you mean /help?" with the candidate of the fewest slips; empty where none is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string_view>& candidates);

}  // namespace troupe::launcher
