#!/usr/bin/env bash
# SHA256SUMS of the files of a folder, in it: packaging/sums.sh FOLDER. `sha256sum --check SHA256SUMS` holds them against it.
set -euo pipefail
cd "$1"
rm -f SHA256SUMS
# macOS has the second.
sha256=(sha256sum)
command -v sha256sum >/dev/null || sha256=(shasum -a 256)
sums=$("${sha256[@]}" -- *)
tee SHA256SUMS <<<"$sums"
