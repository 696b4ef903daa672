// launcher/prompts.h: what the user wants continued or scored.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace troupe::launcher {

struct Prompt {
  std::string text;                         // empty when given as ids
  std::optional<std::vector<int32_t>> ids;  // --prompt-ids: exactly as given
};

// {"text": "..."} , "..." , or a list of these ([{"text": ...}, "..."]); at most 64 MiB of JSON.
// UserError with the file, and the index of the entry that is wrong.
std::vector<Prompt> read_prompt_file(const std::filesystem::path& file);

// "1,2,3": decimal ids, 0 .. 2^31 - 1; spaces around numbers are allowed, an empty list is not.
std::vector<int32_t> parse_ids(const std::string& text);

}  // namespace troupe::launcher
