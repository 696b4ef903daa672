#!/usr/bin/env bash
# Installs what is missing, builds what has changed, runs a configuration. See ./infer.sh --help.
set -euo pipefail

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
build=$root/build/release
# shellcheck source=set_env.sh
source "$root/set_env.sh"
yaml=
model=
pd_role=
p_yaml=
d_yaml=
mode=offline
command=run
settings=()  # options that this script adds; those of the command line come after them and win
options=()

usage() {
  cat <<'TEXT'
./infer.sh [--model NAME] [--yaml FILE] [--mode offline|online] [--chat] [options of troupe]

Installs missing Debian packages, builds Troupe (build/release) and runs a configuration: without
--yaml configs/tiny_moe.yaml, which continues the stories of configs/prompts.json on 4 ranks.
Paths are relative to the current directory, those inside the files of configs/ to the repository.

  ./infer.sh --prompt "Once upon a time"
  ./infer.sh --yaml configs/tiny_moe_rank_8_8ep.yaml --set model_config.next_n=0
  ./infer.sh --chat                     talk to the model (troupe chat)
  ./infer.sh --mode online --port 8000  OpenAI-compatible HTTP (troupe serve)
  ./infer.sh --mode online --pd-role both --yaml configs/tiny_moe_pd
                                        the same, prefill and decode on ranks of their own
  build/release/troupe run --help       all options, once built

--model NAME  the configuration configs/NAME.yaml, or the only configs/NAME_*.yaml; --yaml FILE is
              then also looked for in configs/. A checkpoint NAME in MODELS_PATH (set_env.sh) is used.
--mode        offline: troupe run (or chat); online: troupe serve
--pd-role     with --mode online: mixed (one instance for prefill and decode, as without it); both:
              an instance of each behind one endpoint; prefill, decode, router: one of these, which
              finds the others by --router NAME (docs/pd.md). --yaml is then PREFILL,DECODE or a
              directory with prefill.yaml and decode.yaml, by default configs/tiny_moe_pd;
              --p-yaml-name and --d-yaml-name name the two one by one

Logs of the launcher and of each rank, the configuration as it was understood and the report of a
run go to res/<time>/. set_env.sh says where, and where checkpoints are.

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
  TOKENIZER_MODE          default, or chat: --chat of troupe run
TEXT
}

die() {
  echo "infer.sh: $1" >&2
  exit 2
}

# value_of OPTION REST...: into $value what stands behind OPTION.
value_of() {
  case $1 in
    --*=*) value=${1#*=} taken=1 ;;
    *)
      (($# >= 2)) || die "$1: a value must follow"
      value=$2 taken=2
      ;;
  esac
}

read_arguments() {
  local value taken
  while (($#)); do
    taken=1
    case $1 in
      -h | --help) usage && exit 0 ;;
      --yaml | --config | --yaml=* | --config=*) value_of "$@" && yaml=$value ;;
      --model | --model=*) value_of "$@" && model=$value ;;
      --mode | --mode=*) value_of "$@" && mode=$value ;;
      --pd-role | --pd-role=*) value_of "$@" && pd_role=$value ;;
      --p-yaml-name | --p-yaml-name=*) value_of "$@" && p_yaml=$value ;;
      --d-yaml-name | --d-yaml-name=*) value_of "$@" && d_yaml=$value ;;
      --engine-backend*) die "--engine-backend: there is one engine, Troupe's; leave it out" ;;
      --chat) command=chat ;;
      *) options+=("$1") ;;
    esac
    shift "$taken"
  done
}

check_arguments() {
  if [[ -n $p_yaml$d_yaml ]]; then
    [[ -n $p_yaml && -n $d_yaml ]] || die "--p-yaml-name and --d-yaml-name go together"
    [[ -z $yaml ]] || die "--yaml: --p-yaml-name and --d-yaml-name say it already"
    yaml=$p_yaml,$d_yaml
  fi
  [[ -z $pd_role || $mode == online ]] || die "--pd-role goes with --mode online"
  case $mode in
    offline) ;;
    online)
      [[ $command == run ]] || die "--chat goes with --mode offline"
      command=serve
      if [[ -n $pd_role ]]; then settings+=(--pd-role "$pd_role"); fi
      if [[ -z $yaml && -n $pd_role && $pd_role != mixed ]]; then yaml=$root/configs/tiny_moe_pd; fi
      ;;
    *) die "--mode $mode: expected offline or online" ;;
  esac
  ((${#IPs[@]} == 1)) ||
    die "set_env.sh: IPs has ${#IPs[@]} addresses; this version runs on one machine, name only that"
}

find_yaml() {
  if [[ -z $yaml && -z $model ]]; then
    yaml=$root/configs/tiny_moe.yaml
  elif [[ -n $yaml ]]; then
    if [[ -n $model && ! -e $yaml && -e $root/configs/$yaml ]]; then yaml=$root/configs/$yaml; fi
  elif [[ -e $root/configs/$model.yaml ]]; then
    yaml=$root/configs/$model.yaml
  else
    local found=("$root/configs/$model"_*.yaml)
    [[ -e ${found[0]} ]] ||
      die "--model $model: no configs/$model.yaml and no configs/${model}_*.yaml; give --yaml FILE"
    ((${#found[@]} == 1)) || die "--model $model: which --yaml of ${found[*]##*/}?"
    yaml=${found[0]}
  fi
}

use_checkpoint() {
  if [[ -n $model && -n $MODELS_PATH && -d $MODELS_PATH/$model ]]; then
    set_key model_config.model_path "$MODELS_PATH/$model"
  fi
}

# A directory of its own for what this launch leaves behind.
make_results() {
  local directory
  directory=$RESULTS_PATH/$(date +%Y%m%d_%H%M%S)
  mkdir -p "$RESULTS_PATH" 2>/dev/null || die "RESULTS_PATH $RESULTS_PATH: cannot be made"
  mkdir "$directory" 2>/dev/null || { directory+=_$$ && mkdir "$directory"; }
  settings+=(--log-dir "$directory")
  if [[ $command == run && " ${options[*]} " != *" --json"[\ =]* ]]; then
    settings+=(--json "$directory/report.json")
  fi
  echo "infer.sh: logs in $directory" >&2
}

set_key() { settings+=(--set "$1=$2"); }

# The files of configs/ name paths as seen from the repository: this makes them work from anywhere.
anchor_paths() {
  local key value file=${yaml%%,*}
  if [[ -d $file ]]; then file=$file/prefill.yaml; fi
  [[ $(readlink -f "$file") == "$root"/configs/* && -r $file ]] || return 0
  for key in model_config.model_path data_config.dataset_path; do
    value=$(sed -n "s/^  ${key#*.}: *\([^ #]*\).*/\1/p" "$file")
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
    chat) [[ $command != run ]] || settings+=(--chat) ;;
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
check_arguments
find_yaml
anchor_paths
use_checkpoint
read_environment
"$root/tools/install_packages.sh"
build
make_results
exec "$build/troupe" "$command" --config "$yaml" "${settings[@]}" "${options[@]}"
