// launcher/bench_command.h: `troupe bench ...`, one subcommand a file.
#pragma once

namespace CLI {
class App;
}

namespace troupe::launcher {

// Adds `bench` and its subcommands to the command line; they run when it is parsed. `bench`, to
// which others may add theirs.
CLI::App& add_bench_command(CLI::App& app);

// Each adds subcommands to `bench`. All print a table to stdout and take --json FILE.
void add_bench_collectives(CLI::App& bench);  // bench_collectives.cc
void add_bench_moe(CLI::App& bench);          // bench_moe.cc
void add_bench_inference(CLI::App& bench);    // bench_inference.cc: prefill and decode

}  // namespace troupe::launcher
