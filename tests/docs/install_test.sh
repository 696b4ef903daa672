#!/usr/bin/env bash
# An installed Troupe runs, and brings its manual page and completion: install_test.sh BUILD_DIR
set -euo pipefail

prefix=$(readlink -f "$(mktemp -d)")
trap 'rm -rf "$prefix"' EXIT

fail() {
  echo "install_test.sh: $1" >&2
  exit 1
}

cmake --install "$1" --prefix "$prefix" >/dev/null

cd "$prefix/share/troupe"
text=$("$prefix/bin/troupe" --log-level error run --config configs/tiny_moe_rank_1.yaml \
  --prompt "Once upon a time" --set scheduler_config.max_new_tokens=8)
[[ $text == *"there was"* ]] || fail "the installed program writes: '$text'"

# From anywhere: the model is found beside the directory of the configuration.
text=$(cd / && "$prefix/bin/troupe" --log-level error run --prompt "Once upon a time" \
  --config "$prefix/share/troupe/configs/tiny_moe.yaml" --set scheduler_config.max_new_tokens=8)
[[ $text == *"there was"* ]] || fail "from another directory it writes: '$text'"

manual=$prefix/share/man/man1/troupe.1
warnings=$(groff -man -Tutf8 -ww "$manual" 2>&1 >/dev/null) || fail "groff fails"
[[ -z $warnings ]] || fail "groff says: $warnings"
for words in '\-\-config' 'bench collectives' 'EXIT STATUS'; do
  grep -qF -- "$words" "$manual" || fail "the manual page does not have '$words'"
done

# complete WORDS...: what Tab offers behind them, as one line.
complete_words() (
  # shellcheck source=/dev/null
  source "$prefix/share/bash-completion/completions/troupe"
  COMP_WORDS=("$@")
  COMP_CWORD=$(($# - 1))
  _troupe
  echo "${COMPREPLY[*]}"
)
[[ $(complete_words troupe tok) == tokenize ]] || fail "tok: $(complete_words troupe tok)"
[[ $(complete_words troupe bench dec) == decode ]] || fail "bench dec"
[[ $(complete_words troupe run --prompt-f) == --prompt-file ]] || fail "run --prompt-f"
[[ $(complete_words troupe --log-level wa) == warn ]] || fail "--log-level wa"
[[ -z $(complete_words troupe run --prompt-file co) ]] || fail "files are bash's own business"
[[ -z $(complete_words troupe rank --laun) ]] || fail "rank is for the launcher alone"
