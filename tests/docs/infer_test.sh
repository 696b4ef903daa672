#!/usr/bin/env bash
# What infer.sh hands to `troupe run`: infer_test.sh SOURCE_DIR
#
# infer.sh is run in a copy of the repository where nothing is to be installed or built and where
# build/release/troupe prints its directory and its arguments.
set -euo pipefail

scratch=$(readlink -f "$(mktemp -d)")
trap 'rm -rf "$scratch"' EXIT
project=$scratch/project
mkdir -p "$project"/{tools,build/release} "$scratch"/{bin,elsewhere}
cp "$1"/{infer.sh,set_env.sh} "$project"
cp -r "$1/configs" "$project"
touch "$project/build/release/build.ninja"

# program PATH BODY
program() {
  printf '#!/bin/sh\n%s\n' "$2" >"$1"
  chmod +x "$1"
}
program "$project/tools/install_packages.sh" 'exit 0'
program "$scratch/bin/ninja" 'echo "ninja: no work to do."'
# shellcheck disable=SC2016  # for the program to expand
program "$project/build/release/troupe" 'echo "in $PWD"; printf "%s\n" "$@"; exit "${STATUS:-0}"'

# infer [NAME=VALUE ...] -- ARGUMENTS: runs infer.sh elsewhere, with no other variables.
infer() {
  local variables=()
  while [[ $1 != -- ]]; do
    variables+=("$1")
    shift
  done
  shift
  cd "$scratch/elsewhere"
  env -i PATH="$scratch/bin:$PATH" "${variables[@]}" "$project/infer.sh" "$@" 2>&1
}

fail() {
  echo "infer_test.sh: $1" >&2
  exit 1
}

# expect WHAT TEXT LINES: all LINES are among those of TEXT, next to each other.
expect() {
  [[ $'\n'$2$'\n' == *$'\n'"$3"$'\n'* ]] || fail "$1: expected '$3' in '$2'"
}

# expect_refusal WHAT TEXT INFER_ARGUMENTS...: status 2 and one line with TEXT.
expect_refusal() {
  local what=$1 text=$2 output status=0
  shift 2
  output=$(infer "$@") || status=$?
  ((status == 2)) || fail "$what: status $status instead of 2"
  [[ $output == *"$text"* && $output != *$'\n'* ]] || fail "$what: '$output'"
}

output=$(infer -- --prompt "two words")
expect "the user's directory stays" "$output" "in $scratch/elsewhere"
expect "the default configuration" "$output" $'run\n--config\n'"$project/configs/tiny_moe.yaml"
expect "its model is found from anywhere" "$output" \
  $'--set\nmodel_config.model_path='"$project/models/tiny-moe"
expect "its prompts are found from anywhere" "$output" \
  $'--set\ndata_config.dataset_path='"$project/configs/prompts.json"
expect "options are passed on" "$output" $'--prompt\ntwo words'

echo "model_config: {model_path: my/model}" >"$scratch/elsewhere/my.yaml"
output=$(infer -- --yaml my.yaml --ignore-eos)
expect "a file of one's own is used as it is" "$output" $'run\n--config\nmy.yaml\n--log-dir'
expect "its options" "$output" "--ignore-eos"

output=$(infer WORLD_SIZE=8 MODEL_DIR=my/model INPUT_MAX_LEN=100 MAX_NEW_TOKENS=5 BATCH_SIZE=16 \
  EXE_MODE=eager HCCL_BUFFSIZE=200 HCCL_DETERMINISTIC=strict HCCL_OP_EXPANSION_MODE=AIV \
  TOKENIZER_MODE=default -- --yaml my.yaml --set scheduler_config.max_new_tokens=6)
while read -r setting; do
  expect "the environment" "$output" $'--set\n'"$setting"
done <<'TEXT'
parallel_config.world_size=8
model_config.model_path=my/model
data_config.input_truncated_len=100
scheduler_config.max_new_tokens=5
scheduler_config.batch_size=16
model_config.exe_mode=eager
runtime_config.comm_buffer_mb=200
runtime_config.deterministic=True
runtime_config.comm_mode=inline
TEXT
[[ $output == *max_new_tokens=5*max_new_tokens=6* ]] || fail "the command line must win: '$output'"

output=$(infer MODEL_DIR=my/model --)
[[ $output == *"model_path=$project"*model_path=my/model* ]] || fail "MODEL_DIR must win: '$output'"
output=$(infer HCCL_DETERMINISTIC=false HCCL_OP_EXPANSION_MODE=AI_CPU WORLD_SIZE= --)
expect "false" "$output" "runtime_config.deterministic=False"
expect "AI_CPU" "$output" "runtime_config.comm_mode=thread"
[[ $output != *world_size* ]] || fail "an empty variable is unset: '$output'"

output=$(infer TOKENIZER_MODE=chat --)
expect "chat" "$output" "--chat"
expect_refusal "an unknown mode" "expected default or chat" TOKENIZER_MODE=loud --
expect_refusal "an unknown word" "expected true, false or strict" HCCL_DETERMINISTIC=maybe --
expect_refusal "an unknown engine" "expected AIV" HCCL_OP_EXPANSION_MODE=GPU --
expect_refusal "no file" "a value must follow" -- --yaml

output=$(infer -- --model deepseek_r1 --yaml deepseek_r1_rank_16_16ep.yaml)
expect "a file of configs/" "$output" "$project/configs/deepseek_r1_rank_16_16ep.yaml"
expect "the only file of a model" "$(infer -- --model=kimi_k2)" \
  "$project/configs/kimi_k2_rank_128_128ep.yaml"
expect_refusal "several files of a model" "gpt_oss_20b_rank_8_8tp.yaml" -- --model gpt_oss
expect_refusal "no file of a model" "no configs/gpt_6.yaml" -- --model gpt_6
mkdir -p "$scratch/checkpoints/kimi_k2"
output=$(infer MODELS_PATH="$scratch/checkpoints" -- --model kimi_k2)
[[ $output == *"model_path=$project"*"model_path=$scratch/checkpoints/kimi_k2"* ]] ||
  fail "a checkpoint in MODELS_PATH must win: '$output'"

expect "chat" "$(infer TOKENIZER_MODE=chat -- --chat)" $'chat\n--config'
output=$(infer -- --mode online --port 80)
expect "online" "$output" $'serve\n--config'
expect "its options" "$output" $'--port\n80'
[[ $output != *--json* ]] || fail "a server writes no report: '$output'"
expect_refusal "an unknown mode" "expected offline or online" -- --mode sideways
expect_refusal "chat online" "--mode offline" -- --chat --mode online
expect_refusal "a role offline" "--pd-role goes with --mode online" -- --pd-role=prefill
expect_refusal "an engine" "--engine-backend: there is one" -- --engine-backend=vllm
expect_refusal "half a pair" "go together" -- --mode online --p-yaml-name p.yaml
output=$(infer -- --mode online --pd-role both)
expect "two pools" "$output" $'serve\n--config\n'"$project/configs/tiny_moe_pd"
expect "their role" "$output" $'--pd-role\nboth'
expect "their model is found from anywhere" "$output" \
  $'--set\nmodel_config.model_path='"$project/models/tiny-moe"
expect "two files" "$(infer -- --mode online --p-yaml-name p.yaml --d-yaml-name=d.yaml)" \
  $'--config\np.yaml,d.yaml'

results=$scratch/results
output=$(infer RESULTS_PATH="$results" --)
directory=$(echo "$results"/*)
[[ -d $directory ]] || fail "no directory for results: '$output'"
expect "logs" "$output" $'--log-dir\n'"$directory"
expect "a report" "$output" $'--json\n'"$directory/report.json"
output=$(infer -- --json mine.json)
[[ $output != *report.json* ]] || fail "a report of one's own is enough: '$output'"
expect_refusal "results nowhere" "RESULTS_PATH /proc/nowhere" RESULTS_PATH=/proc/nowhere --
sed -i 's/^IPs=.*/IPs=(10.0.0.1 10.0.0.2)/' "$project/set_env.sh"
expect_refusal "two machines" "IPs has 2 addresses" --
cp "$1/set_env.sh" "$project"

status=0
infer STATUS=3 -- >/dev/null || status=$?
((status == 3)) || fail "the exit status is troupe's own: $status"

expect "help" "$(infer -- --help)" "./infer.sh [--model NAME] [--yaml FILE] [--mode offline|online] [--chat] [options of troupe]"
