#!/usr/bin/env bash
# The files of a release, in target/dist: for each target an archive, an SBOM and, for Linux, a package for Debian; the Python package;
# and SHA256SUMS.
#
#   packaging/dist.sh [TARGET…]     without targets: Linux on x86-64 and aarch64, or macOS on this machine's processor
#   DIRTY=yes packaging/dist.sh     of a clone with changes, which the commit that the files name has not
#
# Linux's binaries are static, linked with musl: they run on every distribution, and in an empty folder. zig, from a package index,
# compiles their C, and the linker that comes with Rust links them, so that neither target needs a cross compiler. Needs rustup, git,
# python3 (3.11 or later) with venv, GNU's tar, and dpkg-deb for the packages.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

if (($# == 0)); then
    case $(uname -s) in
        Linux) set -- x86_64-unknown-linux-musl aarch64-unknown-linux-musl ;;
        Darwin) set -- "$(uname -m | sed 's/arm64/aarch64/')-apple-darwin" ;;
        *) die "no target is known for $(uname -s)" ;;
    esac
fi
[[ -n ${DIRTY:-} || -z $(git status --porcelain) ]] ||
    die 'the clone has changes, and the files would name a commit that they are not of: commit, or set DIRTY=yes'

export SOURCE_DATE_EPOCH CARGO_INCREMENTAL=0
SOURCE_DATE_EPOCH=$(git log -1 --no-show-signature --format=%ct)
binary_of() { echo "${CARGO_TARGET_DIR:-target}/$1/dist/cdc-export"; }

for target in "$@"; do
    [[ -d $(rustc --print sysroot)/lib/rustlib/$target ]] || rustup target add "$target"
    # A panic names paths: not those of who built it.
    flags="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" build=build path=$PATH
    if [[ $target == *-linux-musl ]]; then
        python=$(tests/venv.sh zig)
        build=zigbuild path=${python%/*}:$PATH
        # Not zig's linker: it makes a program that lies at the same addresses in each process, and knows neither of these. They take
        # a tenth off: relocations in their packed form, and functions of the same code once.
        flags="$flags -C linker=rust-lld -C linker-flavor=ld.lld -C link-arg=-zpack-relative-relocs -C link-arg=--icf=all"
    fi
    env PATH="$path" "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_RUSTFLAGS=$flags" \
        cargo "$build" --locked --profile dist --features "${FEATURES:-full}" --bin cdc-export --target "$target"
done

# One that runs here says what is in the pages of all.
for target in "$@"; do
    ! "$(binary_of "$target")" --version || export NATIVE=${NATIVE:-$(binary_of "$target")}
done
rm -rf target/dist
mkdir -p target/dist
for target in "$@"; do
    packaging/pack.sh "$(binary_of "$target")" "$target" target/dist
done
packaging/python.sh target/dist
packaging/sums.sh target/dist
