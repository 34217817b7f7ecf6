#!/usr/bin/env bash
# Wheels that a bare machine with Python 3.12 and torch lacks, into .whl/ of the repository; then how much is carried.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
most=$((64 * 1024 * 1024))
exclude="$(git rev-parse --git-path info/exclude)"
mkdir -p "$(dirname "$exclude")"
grep -qx '/.whl/' "$exclude" 2>/dev/null || echo '/.whl/' >>"$exclude"
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  -d .whl "$@" av==18.1.0 rustling==0.9.0 platformdirs
ls -l .whl
left='engines/models/(whisper-tiny.en|stanza-en-ewt-small)/'
size=$({ git ls-files -z | grep -zvE "^$left"; find .whl -type f -print0; } | xargs -0 stat -c %s | awk '{s += $1} END {print s}')
echo "to be carried, without $left: $((size / 1024 / 1024)) MiB"
[ "$size" -le "$most" ] || { echo "more than 64 MiB" >&2; exit 1; }
