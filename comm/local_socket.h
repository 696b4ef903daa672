// comm/local_socket.h: Unix sockets in the abstract namespace of Linux: they have no name in any
// file system, so nothing is left behind however their owner dies. Who is at the other end is
// checked by its user id.
#pragma once

#include <string>

#include "base/memory.h"

namespace troupe::comm {

// Listens under `name`; nothing when somebody else does. std::runtime_error for other failures.
Fd listen_local(const std::string& name, int type);
// A connection to who listens there; nothing (and errno) when nobody does.
Fd connect_local(const std::string& name, int type);
// The user at the other end of a connection.
unsigned peer_uid(int fd);

}  // namespace troupe::comm
