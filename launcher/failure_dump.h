// launcher/failure_dump.h: everything that is known of a launch that failed, as a file.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launcher/failure.h"

namespace troupe::launcher {

// {"line", "failure": {rank, pid, role, what, place, detail, waited_for_by}, "table",
//  "ranks": [{rank, pid, role, state, stage, step, layer, operation, group, sequence, waiting_for,
//             words, crash: {signal, address, stack: [{module, address, function}]},
//             collectives: [{operation, group, leader, sequence, bytes, start_ms_ago,
//             end_ms_ago}],
//             trace: [{event, actor, step, layer, peer, tokens, bytes, start_ms_ago,
//             end_ms_ago}]}]}
// trace: the last events of a launch that is traced (comm/trace.h); also rows "sent" and
// "received". Of very many ranks fewer collectives and events each, so that the file stays under
// 16 MB. Taken before anything is aborted.
nlohmann::json failure_dump(const LaunchView& launch, const Failure& failure,
                            const std::string& table);

// Writes it to DIRECTORY/troupe-dump-DATE-TIME-PID.json. Returns what a message says of that:
// "dump: FILE", or "no dump: " and why; never throws, as an error is being reported already.
std::string write_failure_dump(const std::filesystem::path& directory, const nlohmann::json& dump);

}  // namespace troupe::launcher
