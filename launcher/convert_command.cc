#include <spdlog/spdlog.h>

#include "base/error.h"
#include "launcher/commands.h"
#include "launcher/kv_calibration.h"
#include "launcher/progress.h"
#include "launcher/requests.h"
#include "model/convert.h"

namespace troupe::launcher {
namespace {

model::QuantMode quant_mode(const std::string& name) {
  if (name == "bfloat16") return model::QuantMode::kBfloat16;
  if (name == "w8a8c16") return model::QuantMode::kW8A8C16;
  if (name == "w8a8c8") return model::QuantMode::kW8A8C8;
  throw_user_error("--quant-mode {}: one of bfloat16, w8a8c16, w8a8c8", name);
}

void check_calibration_file(const ConvertArguments& arguments) {
  const bool needed = quant_mode(arguments.quant_mode) == model::QuantMode::kW8A8C8;
  if (needed && arguments.calibration_file.empty())
    throw_user_error(
        "--quant-mode w8a8c8: give --calibration-file FILE, text like what the model will read: "
        "scales of the int8 KV cache are measured on it");
  if (!needed && !arguments.calibration_file.empty())
    throw_user_error(
        "--calibration-file: only --quant-mode w8a8c8 measures anything; leave it out");
}

}  // namespace

void convert_command(const ConvertArguments& arguments) {
  check_calibration_file(arguments);
  if (!arguments.calibration_file.empty()) read_text_file(arguments.calibration_file);
  ProgressBar bar("converting");
  size_t written = 0;
  model::convert_checkpoint(
      {.input = arguments.input,
       .output = arguments.output,
       .mode = quant_mode(arguments.quant_mode),
       .calibrate = [&] { return calibrate_kv_cache(arguments.input, arguments.calibration_file); },
       .calibration_file = arguments.calibration_file,
       .progress =
           [&](size_t done, size_t total) {
             written = total;
             bar.show(done, total);
           }});
  bar.finish();
  spdlog::info("{} holds {} as {}, {:.1f} MB", arguments.output.string(), arguments.input.string(),
               arguments.quant_mode, static_cast<double>(written) * 1e-6);
}

}  // namespace troupe::launcher
