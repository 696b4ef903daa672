#!/usr/bin/env bash
# Converts a checkpoint, with the option names of the cann-recipes-infer script of this name.
set -euo pipefail

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

usage() {
  cat <<'TEXT'
tools/weight_convert.sh --input_fp8_hf_path DIR --output_hf_path DIR --quant_mode MODE
                        [--calibration_file FILE]

  MODE: bfloat16, w8a8c16, w8a8c8 (see docs/convert.md)
  FILE: text on which w8a8c8 measures the scales of the KV cache (configs/calibration.txt)
  The program is $TROUPE, or the one that ./infer.sh has built.
TEXT
}

input="" output="" mode="" calibration="$root/configs/calibration.txt"
while (($# > 0)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --input_fp8_hf_path | --output_hf_path | --quant_mode | --calibration_file)
      (($# >= 2)) || { echo "$1: needs a value" >&2 && exit 2; }
      ;;&
    --input_fp8_hf_path) input=$2 ;;
    --output_hf_path) output=$2 ;;
    --quant_mode) mode=$2 ;;
    --calibration_file) calibration=$2 ;;
    *) echo "$1: unknown option" >&2 && usage >&2 && exit 2 ;;
  esac
  shift 2
done
[[ -n $input && -n $output && -n $mode ]] || { usage >&2 && exit 2; }

more=()
[[ $mode == w8a8c8 ]] && more=(--calibration-file "$calibration")
exec "${TROUPE:-$root/build/release/troupe}" convert --input "$input" --output "$output" \
  --quant-mode "$mode" "${more[@]}"
