#!/usr/bin/env bash
# check_handoff.sh: spin's verdict on handoff.pml, and on each of its mistakes, which has to be found.
set -euo pipefail

model=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/handoff.pml
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"

# errors_of [DEFINE...]: how many errors an exhaustive search finds.
errors_of() {
  spin -a "$@" "$model" >spin.log || { cat spin.log >&2 && exit 1; }
  gcc -O0 -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -o pan pan.c || exit 1
  ./pan -m200000 >pan.log
  sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log
}

errors=$(errors_of)
states=$(sed -n 's/ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)
echo "the protocol: $errors errors in $states states"
if [[ $errors != 0 ]] || grep -q -E 'depth too small|out of memory|not completed' pan.log; then
  cat pan.log >&2 && exit 1
fi

mapfile -t faults < <(sed -n 's/^#ifn\?def \(FAULT_[A-Z_]*\)$/\1/p' "$model" | sort -u)
for fault in "${faults[@]}"; do
  errors=$(errors_of "-D$fault")
  echo "$fault: $(sed -n 's/^pan:[0-9]*: //p' pan.log | head -1)"
  [[ $errors -gt 0 ]] || { echo "$fault is not found" >&2 && exit 1; }
done
