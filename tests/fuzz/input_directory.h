// tests/fuzz/input_directory.h: the bytes of a target as a file, for what reads files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace troupe::fuzz {

using Bytes = std::span<const std::byte>;

std::string_view text_of(Bytes bytes);
void write(const std::filesystem::path& path, std::string_view text);

// A target's own directory of this process, in memory where the system has such a place.
std::filesystem::path directory_of(const std::string& target);
// The same with the bytes in one file of it.
std::filesystem::path directory_with(const std::string& target, const char* file, Bytes bytes);

}  // namespace troupe::fuzz
