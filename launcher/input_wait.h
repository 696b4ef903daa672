// launcher/input_wait.h: waiting for stdin and for something else.
#pragma once

#include <string>

#include "launcher/line_reader.h"

namespace troupe::launcher {

enum class Input { kBytes, kEnd, kCancelled, kResumed };

// Waits until there is input, and appends some to `bytes`. kCancelled: on_ready() returned true.
// kResumed: a signal was handled (the window changed its size, the process was stopped before).
Input wait_for_input(const LineReader::Beside& beside, std::string& bytes);

}  // namespace troupe::launcher
