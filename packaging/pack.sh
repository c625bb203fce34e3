#!/usr/bin/env bash
# Packs a binary for a release: packaging/pack.sh BINARY TARGET FOLDER. The binary may be any that is built for the target.
#
#   NATIVE=BINARY    one that runs on this machine, for the man pages and completions of one that doesn't
#   VERSION=1.2.3    in place of Cargo.toml's
set -euo pipefail
binary=$(realpath "$1") target=$2 out=$(realpath "$3")
native=${NATIVE:+$(realpath "$NATIVE")}
cd "$(dirname "$0")/.."
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

export VERSION=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --no-show-signature --format=%ct)}
if "$binary" --version >/dev/null 2>&1; then
    native=$binary
elif [[ -z $native ]]; then
    die "$binary doesn't run here: NATIVE has to name one that does, for the man pages and completions"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
name=cdc-export-$VERSION-$target
tree=$work/$name
mkdir -p "$tree/completions"
install -m 755 "$binary" "$tree/cdc-export"
"$native" man "$tree/man"
for shell in bash zsh fish; do
    "$native" completions "$shell" >"$tree/completions/cdc-export.$shell"
done
install -m 644 README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$tree/"
install -m 644 .env.example "$tree/"
# What README and the guides link to.
cp -r docs deploy "$tree/"
python3 packaging/bom.py sbom "$target" "$binary" >"$tree/cdc-export.cdx.json"
python3 packaging/bom.py notices "$target" >"$tree/THIRD-PARTY-NOTICES.txt"
cp "$tree/cdc-export.cdx.json" "$out/$name.cdx.json"

if [[ $target == *linux* ]]; then
    if command -v dpkg-deb >/dev/null; then
        packaging/deb.sh "$tree" "$target" "$out"
    else
        echo "no package for $target: there is no dpkg-deb"
    fi
fi

# The same bytes of the same input. macOS calls GNU's tar gtar.
tar=$(command -v gtar || command -v tar)
"$tar" -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
    gzip -n >"$out/$name.tar.gz"
