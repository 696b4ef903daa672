// comm/flight_recorder.h: the last collectives of a rank, kept in shared memory so that the
// launcher can read them when the rank no longer answers.
#pragma once

#include <span>
#include <string>

#include "comm/arena.h"

namespace troupe::comm {

// The writing end; one per rank. Costs a cache line of plain stores and a clock per call.
class FlightRecorder {
 public:
  FlightRecorder(const Arena& arena, int rank);

  // Opens a record; the last one again if it is of the same call, which goes on.
  void begin(Operation operation, uint32_t group, int32_t leader, uint64_t sequence,
             uint64_t bytes);
  // Opens the record of a call begun before others, if the ring still has it.
  void resume(uint32_t group, uint64_t sequence);
  // Closes the open record. A handle's stays open until it is waited for.
  void end();

 private:
  Arena::Flight& record(uint64_t number) const;

  Arena::Flight* ring_;
  uint64_t begun_ = 0;  // records ever made
  uint64_t open_ = 0;   // number of the one that end() closes
};

// A table of all ranks: whether each has come to the collective in which `failed_rank` failed (or,
// if it was in none, in which others wait for it), when, when it last showed that it runs
// (comm/heartbeat.h), and what it is doing. failed_rank
// -1: none failed, about a collective in which ranks wait. For people, below the line that names
// the cause; every line ends with a newline. Empty if no collective is to blame.
std::string flight_table(const Arena& arena, int failed_rank);

// Which of `ranks` have come to that call, and what those are doing that have not, for the error of
// a rank that is in it: " Arrived: 0-1, 3. Not arrived: 2 (decode step 14, layer 3)." Of many that
// have not come the first few are described.
std::string arrivals_text(const Arena& arena, const FlightRecord& call, std::span<const int> ranks);

}  // namespace troupe::comm
