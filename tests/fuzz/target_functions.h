// tests/fuzz/target_functions.h: the functions that targets.cc lists.
#pragma once

#include "tests/fuzz/input_directory.h"

namespace troupe::fuzz {

// checkpoint_targets.cc: the files of a checkpoint.
void safetensors(Bytes bytes);
void index_json(Bytes bytes);
void config_json(Bytes bytes);
void tokenizer_json(Bytes bytes);
void tokenizer_config(Bytes bytes);
void tiktoken(Bytes bytes);
void chat_template(Bytes bytes);
void split_pattern(Bytes bytes);
void split_json(Bytes bytes);

// launch_targets.cc: what a launch and its tools read.
void yaml(Bytes bytes);
void prompts(Bytes bytes);
void dataset(Bytes bytes);
void prompt_ids(Bytes bytes);
void placement(Bytes bytes);
void expert_counts(Bytes bytes);
void arrivals(Bytes bytes);
void chat_log(Bytes bytes);
void symbols(Bytes bytes);
void fault(Bytes bytes);
void message(Bytes bytes);
void trace(Bytes bytes);

// serve_targets.cc: what clients send.
void http(Bytes bytes);
void request_json(Bytes bytes);

}  // namespace troupe::fuzz
