#!/bin/bash
# What ranks cost: start-up, time per token and memory of one configuration at several world sizes.
#   bench/rank_counts.sh TROUPE CONFIG "1 2 4 8" [--set section.key=value ...]
# Memory is the sum of PSS, which counts a page that several ranks share once; `times` is its ratio
# to the first world size. One prompt for each rank, at most 8.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
troupe=$1 config=$2 sizes=$3
shift 3
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
prompts=()
for first in 1 2 3 4 5 6 7 8; do prompts+=(--prompt-ids "$first,12,13,14,15,16,17,18"); done

printf '%6s %10s %12s %10s %8s\n' ranks ready_s ms_per_token memory_mb times
base=
for ranks in $sizes; do
  "$troupe" run --config "$config" --set parallel_config.world_size="$ranks" \
    --set scheduler_config.batch_size=8 --ignore-eos "${prompts[@]}" \
    --json "$directory/report.json" "$@" > "$directory/text"
  read -r ready step memory < <(
    jq -r '.metrics | "\(.load_s) \(.tpot_ms) \([.ranks[].pss_mb] | add)"' "$directory/report.json")
  base=${base:-$memory}
  awk -v r="$ranks" -v s="$ready" -v t="$step" -v m="$memory" -v b="$base" \
    'BEGIN { printf "%6d %10.2f %12.2f %10.1f %8.3f\n", r, s, t, m, m / b }'
done
