#include <spdlog/spdlog.h>

#include "base/error.h"
#include "launcher/commands.h"
#include "launcher/progress.h"
#include "model/convert.h"

namespace troupe::launcher {
namespace {

model::QuantMode quant_mode(const std::string& name) {
  if (name == "bfloat16") return model::QuantMode::kBfloat16;
  if (name == "w8a8c16") return model::QuantMode::kW8A8C16;
  if (name == "w8a8c8")
    throw_user_error(
        "--quant-mode w8a8c8: an int8 KV cache does not exist yet; w8a8c16 has the same weights");
  throw_user_error("--quant-mode {}: one of bfloat16, w8a8c16", name);
}

}  // namespace

void convert_command(const ConvertArguments& arguments) {
  ProgressBar bar("converting");
  size_t written = 0;
  model::convert_checkpoint({.input = arguments.input,
                             .output = arguments.output,
                             .mode = quant_mode(arguments.quant_mode),
                             .progress = [&](size_t done, size_t total) {
                               written = total;
                               bar.show(done, total);
                             }});
  bar.finish();
  spdlog::info("{} holds {} as {}, {:.1f} MB", arguments.output.string(), arguments.input.string(),
               arguments.quant_mode, static_cast<double>(written) * 1e-6);
}

}  // namespace troupe::launcher
