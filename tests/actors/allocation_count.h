// tests/actors/allocation_count.h: this thread's calls of operator new, which the test binary
// replaces.
#pragma once

#include <cstdint>

namespace troupe::actors {

int64_t allocations_of_this_thread();

}  // namespace troupe::actors
