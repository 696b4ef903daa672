#!/usr/bin/env bash
# Installs what is missing, builds what has changed, runs a configuration. See ./infer.sh --help.
set -euo pipefail

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
build=$root/build/release
yaml=$root/configs/tiny_moe.yaml
settings=()  # options that this script adds; those of the command line come after them and win
options=()

usage() {
  cat <<'TEXT'
./infer.sh [--yaml FILE] [options of troupe run]

Installs missing Debian packages, builds Troupe (build/release) and runs a configuration: without
--yaml configs/tiny_moe.yaml, which continues the stories of configs/prompts.json on 4 ranks.
Paths are relative to the current directory, those inside the files of configs/ to the repository.

  ./infer.sh --prompt "Once upon a time"
  ./infer.sh --yaml configs/tiny_moe_rank_8_8ep.yaml --set model_config.next_n=0
  build/release/troupe run --help       all options, once built

Environment, each the --set option (or option) on its right:
  WORLD_SIZE              parallel_config.world_size
  MODEL_DIR               model_config.model_path
  INPUT_MAX_LEN           data_config.input_truncated_len
  MAX_NEW_TOKENS          scheduler_config.max_new_tokens
  BATCH_SIZE              scheduler_config.batch_size
  EXE_MODE                model_config.exe_mode
  HCCL_BUFFSIZE           runtime_config.comm_buffer_mb
  HCCL_DETERMINISTIC      runtime_config.deterministic (true, false or strict)
  HCCL_OP_EXPANSION_MODE  runtime_config.comm_mode (AIV: inline; AI_CPU, HOST, HOST_TS: thread)
  TOKENIZER_MODE          default, or chat: --chat
TEXT
}

die() {
  echo "infer.sh: $1" >&2
  exit 2
}

read_arguments() {
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --yaml | --config)
        (($# >= 2)) || die "$1: a file must follow"
        yaml=$2
        shift
        ;;
      --yaml=* | --config=*) yaml=${1#*=} ;;
      *) options+=("$1") ;;
    esac
    shift
  done
}

set_key() { settings+=(--set "$1=$2"); }

# The files of configs/ name paths as seen from the repository: this makes them work from anywhere.
anchor_paths() {
  [[ $(readlink -f "$yaml") == "$root"/configs/* && -r $yaml ]] || return 0
  local key value
  for key in model_config.model_path data_config.dataset_path; do
    value=$(sed -n "s/^  ${key#*.}: *\([^ #]*\).*/\1/p" "$yaml")
    if [[ -n $value && $value != /* ]]; then set_key "$key" "$root/$value"; fi
  done
}

# from_variable NAME KEY
from_variable() {
  if [[ -n ${!1:-} ]]; then set_key "$2" "${!1}"; fi
}

read_environment() {
  from_variable WORLD_SIZE parallel_config.world_size
  from_variable MODEL_DIR model_config.model_path
  from_variable INPUT_MAX_LEN data_config.input_truncated_len
  from_variable MAX_NEW_TOKENS scheduler_config.max_new_tokens
  from_variable BATCH_SIZE scheduler_config.batch_size
  from_variable EXE_MODE model_config.exe_mode
  from_variable HCCL_BUFFSIZE runtime_config.comm_buffer_mb
  case ${HCCL_DETERMINISTIC:-} in
    "") ;;
    true | strict) set_key runtime_config.deterministic True ;;
    false) set_key runtime_config.deterministic False ;;
    *) die "HCCL_DETERMINISTIC=$HCCL_DETERMINISTIC: expected true, false or strict" ;;
  esac
  case ${HCCL_OP_EXPANSION_MODE:-} in
    "") ;;
    AIV) set_key runtime_config.comm_mode inline ;;
    AI_CPU | HOST | HOST_TS) set_key runtime_config.comm_mode thread ;;
    *) die "HCCL_OP_EXPANSION_MODE=$HCCL_OP_EXPANSION_MODE: expected AIV, AI_CPU, HOST or HOST_TS" ;;
  esac
  case ${TOKENIZER_MODE:-} in
    "" | default) ;;
    chat) settings+=(--chat) ;;
    *) die "TOKENIZER_MODE=$TOKENIZER_MODE: expected default or chat" ;;
  esac
}

# Silent when nothing has changed; stdout is the model's.
build() {
  if [[ ! -f $build/build.ninja ]]; then
    (cd "$root" && cmake --preset release -DTROUPE_TESTS=OFF) >&2
  fi
  if [[ $(ninja -C "$build" -n troupe) != *"no work to do"* ]]; then
    ninja -C "$build" troupe >&2
  fi
}

read_arguments "$@"
anchor_paths
read_environment
"$root/tools/install_packages.sh"
build
exec "$build/troupe" run --config "$yaml" "${settings[@]}" "${options[@]}"
