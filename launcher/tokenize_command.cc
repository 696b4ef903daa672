#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/commands.h"
#include "launcher/prompts.h"
#include "model/tokenizer.h"

namespace troupe::launcher {

void tokenize_command(const TokenizeArguments& arguments) {
  const int given =
      arguments.text.has_value() + !arguments.prompt_file.empty() + !arguments.ids.empty();
  if (given != 1) throw_user_error("tokenize: give one of --text, --prompt-file and --ids");
  const model::Tokenizer tokenizer(arguments.tokenizer);
  nlohmann::json output;
  if (arguments.text) {
    output = tokenizer.encode(*arguments.text, !arguments.no_special);
  } else if (!arguments.ids.empty()) {
    output = tokenizer.decode(parse_ids(arguments.ids), false);
  } else {
    output = nlohmann::json::array();
    for (const Prompt& prompt : read_prompt_file(arguments.prompt_file))
      output.push_back(tokenizer.encode(prompt.text, !arguments.no_special));
  }
  fmt::print("{}\n", output.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace troupe::launcher
