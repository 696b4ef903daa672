// tests/fuzz/targets.h: everything that reads bytes from outside, as functions of bytes.
//
// A target takes any bytes. It may refuse them (UserError, RankError: one line); whatever else it
// does, a crash, another exception, a sanitizer's report, is a fault of ours. fuzz_test.cc replays
// the corpus and mutations of it in the ordinary test run; fuzzer.cc is libFuzzer's entry.
#pragma once

#include <cstddef>
#include <span>

namespace troupe::fuzz {

struct Target {
  const char* name;  // and of its directory in corpus/
  void (*run)(std::span<const std::byte> bytes);
};

std::span<const Target> targets();

// Runs it and lets pass what may be refused. True: the bytes were accepted.
bool run_target(const Target& target, std::span<const std::byte> bytes);

}  // namespace troupe::fuzz
