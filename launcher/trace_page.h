// launcher/trace_page.h: a trace as one HTML file that needs nothing else.
//
// The page is launcher/trace_page/ (page.html, style.css and the scripts), put together when the
// program is built. What it reads is JSON in the page:
//
//   {names: [[operation, category]], tracks: [actor], processes: [{rank, forgotten,
//    spans: [name, track, start, duration, step, layer, tokens, bytes, peer, ...]}],
//    arrows: [[from, sent, to, received]], sent_bytes: [from][to],
//    expert_rows: [rank][layer][expert], counters: [{name, points: [[time, value]]}]}
//
// Times are nanoseconds since the first event; a span is nine numbers, of which layer, peer: -1
// none.
#pragma once

#include <string>

#include "launcher/trace_reader.h"

namespace troupe::launcher {

std::string trace_page(const TraceSet& set);

}  // namespace troupe::launcher
