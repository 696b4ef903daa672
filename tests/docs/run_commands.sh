#!/usr/bin/env bash
# Runs the commands of a document: run_commands.sh TROUPE SOURCE_DIR DOCUMENT
#
# Each ```sh block is run by bash, in the order of the document, in a scratch directory that looks
# like the repository after a build, with TROUPE as build/release/troupe; it must succeed. A ```text
# block below it is what it prints to stdout, to the letter. Blocks marked ```sh no-test are left
# out.
set -euo pipefail

troupe=$1
source=$2
document=$3

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/blocks" "$scratch/repository/build/release"
ln -s "$source"/{configs,models,docs,tests} "$scratch/repository"
ln -s "$troupe" "$scratch/repository/build/release/troupe"

awk -v blocks="$scratch/blocks" '
  /^```/ && file != ""  { file = ""; next }
  /^```sh$/             { command = sprintf("%s/%03d", blocks, ++count); file = command ".sh" }
  /^```text$/           { file = command == "" ? "/dev/null" : command ".expected"; command = "" }
  /^```/ && file == ""  { file = "/dev/null"; command = "" }
  /^```/                { printf "" > file; next }
  file != ""            { print > file; next }
  NF                    { command = "" }
' "$document"

fail() {
  echo "$document: $1" >&2
  exit 1
}

cd "$scratch/repository"
count=0
for block in "$scratch"/blocks/*.sh; do
  [[ -e $block ]] || break
  count=$((count + 1))
  stdout=${block%.sh}.stdout
  cat "$block"
  bash -euo pipefail "$block" >"$stdout" || fail "this command has failed: $(<"$block")"
  if [[ -e ${block%.sh}.expected ]]; then
    diff -u "${block%.sh}.expected" "$stdout" || fail "this command prints something else: $(<"$block")"
  fi
done
echo "$count commands of $document"
