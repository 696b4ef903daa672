// comm/copy.h: copies that go past the caches, for rows that will not be in any cache when they are
// read.
#pragma once

#include <cstddef>

namespace troupe::comm {

// True when so many bytes, moved before any is read again, leave no cache useful.
bool exceeds_caches(size_t bytes);

// memcpy with non-temporal stores: the lines written are not read first and displace nothing. `to`
// is a multiple of 16. To be followed by finish_streaming before anybody is told of the data.
void stream_bytes(std::byte* to, const std::byte* from, size_t bytes);
void finish_streaming();

}  // namespace troupe::comm
