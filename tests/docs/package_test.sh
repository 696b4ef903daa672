#!/usr/bin/env bash
# The Debian package names every library that the program needs, and holds what runs without the
# source tree: package_test.sh BUILD_DIR
set -euo pipefail

scratch=$(readlink -f "$(mktemp -d)")
trap 'rm -rf "$scratch"' EXIT

fail() {
  echo "package_test.sh: $1" >&2
  exit 1
}

(cd "$scratch" && cpack --config "$1/CPackConfig.cmake" -B "$scratch" >"$scratch/log") ||
  fail "cpack: $(<"$scratch/log")"
package=$(ls "$scratch"/troupe_*.deb)
dpkg-deb -x "$package" "$scratch/root"
program=$scratch/root/usr/bin/troupe

depends=$(dpkg-deb -f "$package" Depends)
count=0
while read -r library; do
  path=$(ldd "$program" | awk -v name="$library" '$1 == name { print $3 }')
  # dpkg knows a file by one of its two names where /lib is a link to /usr/lib.
  owner=$({ dpkg -S "$path" || dpkg -S "$(readlink -f "$path")"; } 2>/dev/null | cut -d: -f1)
  named=no
  # Its symbols file may name the package by what that provides.
  for name in "$owner" $(dpkg-query -W -f '${Provides}' "$owner" | sed 's/([^)]*)//g; s/,/ /g'); do
    [[ " ${depends//,/ } " != *" $name "* ]] || named=yes
  done
  [[ $named == yes ]] || fail "$library is in $owner, Depends is '$depends'"
  count=$((count + 1))
done < <(objdump -p "$program" | awk '$1 == "NEEDED" && $2 !~ /^ld-linux/ { print $2 }')
((count >= 4)) || fail "only $count libraries were looked at"

for file in man/man1/troupe.1 bash-completion/completions/troupe doc/troupe/README.md \
  doc/troupe/LICENSE troupe/configs/tiny_moe.yaml troupe/models/tiny-moe/config.json; do
  [[ -s $scratch/root/usr/share/$file ]] || fail "the package has no $file"
done
text=$(cd / && env -i "$program" --log-level error run --prompt "Once upon a time" \
  --config "$scratch/root/usr/share/troupe/configs/tiny_moe.yaml" \
  --set scheduler_config.max_new_tokens=8)
[[ $text == *"there was"* ]] || fail "the program of the package writes: '$text'"
