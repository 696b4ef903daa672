// serve/serve_command.h: `troupe serve`.
#pragma once

namespace CLI {
class App;
}

namespace troupe::serve {

// Adds `serve` to the command line; it runs when that is parsed.
void add_serve_command(CLI::App& app);

}  // namespace troupe::serve
