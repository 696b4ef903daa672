#include "launcher/bench_command.h"

#include <CLI/CLI.hpp>

namespace troupe::launcher {

CLI::App& add_bench_command(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "measure a part of the program on this machine");
  bench->require_subcommand(1);
  add_bench_collectives(*bench);
  add_bench_moe(*bench);
  add_bench_inference(*bench);
  return *bench;
}

}  // namespace troupe::launcher
