// model/text_chunks.h: a text in stretches short enough for tiktoken.
#pragma once

#include <cstddef>
#include <functional>
#include <string_view>

namespace troupe::model {

// Calls `chunk` with the stretches of `text` (valid UTF-8), in order: cut every `max_characters`,
// and inside those wherever more than `max_run` characters follow each other that are all white
// space or all not. As tokenization_kimi.py cuts, and Meta's Llama 3 before it, from whom the
// limits come: tiktoken's patterns ran out of stack beyond them. White space is Python's isspace().
void for_each_chunk(std::string_view text, size_t max_characters, size_t max_run,
                    const std::function<void(std::string_view chunk)>& chunk);

}  // namespace troupe::model
