#!/usr/bin/env bash
# Runs the commands of documents: run_commands.sh TROUPE SOURCE_DIR [DOCUMENT ...]
#
# Without documents: README.md and docs/*.md of SOURCE_DIR. Each ```sh block is run by bash, in the
# order of the document, in a scratch directory that looks like the repository after a build, with
# TROUPE as build/release/troupe; it must succeed. A ```text block below it is what it prints to
# stdout, to the letter. Blocks marked ```sh no-test are left out.
set -euo pipefail

troupe=$1
source=$2
documents=("${@:3}")
((${#documents[@]})) || documents=("$source/README.md" "$source"/docs/*.md)

fail() {
  echo "$1" >&2
  exit 1
}

# split_blocks DOCUMENT DIRECTORY: its commands to 001.sh, 002.sh, ..., what they print to NNN.expected
split_blocks() {
  awk -v blocks="$2" '
    /^```/ && file != ""  { file = ""; next }
    /^```sh$/             { command = sprintf("%s/%03d", blocks, ++count); file = command ".sh" }
    /^```text$/           { file = command == "" ? "/dev/null" : command ".expected"; command = "" }
    /^```/ && file == ""  { file = "/dev/null"; command = "" }
    /^```/                { printf "" > file; next }
    file != ""            { print > file; next }
    NF                    { command = "" }
  ' "$1"
}

# run_document DOCUMENT SCRATCH_DIRECTORY
run_document() {
  local block blocks=$2/blocks repository=$2/repository count=0
  mkdir -p "$blocks" "$repository/build/release"
  ln -s "$source"/{configs,models,docs,tests} "$repository"
  ln -s "$troupe" "$repository/build/release/troupe"
  split_blocks "$1" "$blocks"
  for block in "$blocks"/*.sh; do
    [[ -e $block ]] || break
    count=$((count + 1))
    cat "$block"
    (cd "$repository" && bash -euo pipefail "$block") >"$block.stdout" ||
      fail "$1: this command has failed: $(<"$block")"
    [[ -e ${block%.sh}.expected ]] || continue
    diff -u "${block%.sh}.expected" "$block.stdout" ||
      fail "$1: this command prints something else: $(<"$block")"
  done
  echo "$1: $count blocks of commands"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for i in "${!documents[@]}"; do
  run_document "${documents[i]}" "$scratch/$i"
done
