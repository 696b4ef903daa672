// serve/bench_serve.h: `troupe bench serve`.
#pragma once

namespace CLI {
class App;
}

namespace troupe::serve {

// Adds `serve` to `bench`; it runs when the command line is parsed.
void add_bench_serve(CLI::App& bench);

}  // namespace troupe::serve
