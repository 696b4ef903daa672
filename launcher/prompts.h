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

// data_config.dataset and dataset_path: the prompts of a local file, which is `dataset` itself if
// that ends in .jsonl, else `path`.
//   default                     a prompt file as above; its prompts line by line if it ends in
//   .jsonl LongBench, InfiniteBench    lines of {"context": ..., "input": ...}, as those benchmarks
//   are
//                               published: a prompt is the context, an empty line, the input
// A file of lines has at most 1 GiB. UserError with the file and the line that is wrong.
std::vector<Prompt> read_dataset(const std::string& dataset, const std::filesystem::path& path);

// "1,2,3": decimal ids, 0 .. 2^31 - 1; spaces around numbers are allowed, an empty list is not.
std::vector<int32_t> parse_ids(const std::string& text);

}  // namespace troupe::launcher
