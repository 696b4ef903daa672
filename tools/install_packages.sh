#!/usr/bin/env bash
# Installs the packages of debian_packages.txt that are missing. Where none is, it says and does
# nothing, in a few milliseconds: infer.sh and test.sh begin with it.
#
# install_packages.sh --browser: also Chromium (some 400 MB), for the test of the trace page. Where it
# cannot be installed that test is skipped.
set -euo pipefail

list=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/debian_packages.txt

die() {
  echo "install_packages.sh: $1" >&2
  exit 1
}

if ! command -v dpkg-query >/dev/null; then
  echo "install_packages.sh: not a Debian system; the packages that $list names must be there" >&2
  exit 0
fi

wanted=$(sed 's/ *#.*//; /^$/d' "$list" | sort)
# shellcheck disable=SC2086  # one argument per package
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
  sed -n 's/^installed //p' | sort -u || true)
mapfile -t missing < <(comm -23 <(echo "$wanted") <(echo "$installed"))
browser=()
[[ ${1:-} != --browser ]] || command -v chromium >/dev/null || browser=(chromium)
((${#missing[@]} + ${#browser[@]})) || exit 0

echo "install_packages.sh: installing ${missing[*]} ${browser[*]}" >&2
as_root=(env DEBIAN_FRONTEND=noninteractive)
if ((EUID != 0)); then
  command -v sudo >/dev/null ||
    die "not root and no sudo; as root: apt-get install ${missing[*]} ${browser[*]}"
  as_root=(sudo "${as_root[@]}")
fi
apt_get=("${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=300)
install() { "${apt_get[@]}" install -y --no-install-recommends "$@" >&2; }
"${apt_get[@]}" update >&2 || echo "install_packages.sh: apt-get update has failed" >&2
((${#missing[@]} == 0)) || install "${missing[@]}" ||
  die "apt-get failed (above); needed: ${missing[*]}"
((${#browser[@]} == 0)) || install "${browser[@]}" ||
  echo "install_packages.sh: no chromium: the test of the trace page is left out" >&2
