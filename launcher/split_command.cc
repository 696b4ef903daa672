#include <spdlog/spdlog.h>

#include "actors/rank.h"
#include "launcher/commands.h"
#include "launcher/config.h"
#include "launcher/launch_sizes.h"
#include "launcher/progress.h"
#include "model/split.h"

namespace troupe::launcher {

void split_command(const SplitArguments& arguments) {
  std::vector<std::string> overrides = arguments.config.overrides;
  overrides.push_back("model_config.model_path=" + arguments.input.string());
  const Config config = read_config(arguments.config.config, overrides);
  ProgressBar bar("splitting");
  model::split_checkpoint({.input = arguments.input,
                           .output = arguments.output,
                           .sizes = config.parallel,
                           .weights = actors::weight_options(describe_launch(config, {}, 0)),
                           .progress = [&](size_t done, size_t total) { bar.show(done, total); }});
  bar.finish();
  spdlog::info("{} holds {} for {} ranks", arguments.output.string(), arguments.input.string(),
               config.parallel.world_size);
}

}  // namespace troupe::launcher
