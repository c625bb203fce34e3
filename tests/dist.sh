#!/usr/bin/env bash
# The files of a release, as somebody gets them: unpacked, read, installed, upgraded and removed.
#
#   tests/dist.sh                  those that packaging/dist.sh left in target/dist, each binary run in an empty folder as well
#   BINARY=PATH tests/dist.sh      of a binary that is packed for this: no static one, of any size and commit
#
# Needs what packaging/pack.sh and tests/venv.sh do. As root it installs the package into a copy of this machine's Debian, which lasts as
# long as the script: a mount namespace with an overlay. Lints with lintian where that is installed. A Postgres must be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -z ${IN_NAMESPACE:-} && $(id -u) == 0 ]] && unshare --mount true 2>/dev/null; then
    IN_NAMESPACE=yes exec unshare --mount bash "$PWD/tests/dist.sh"
fi

. tests/service.sh
processes=()
ended() {
    for process in "${processes[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    wait
    if [[ -n ${IN_NAMESPACE:-} ]]; then
        umount --recursive "$work/machine" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap ended EXIT

ok() { printf 'ok: %s\n' "$*"; }
expect() { [[ $2 == "$3" ]] || die "$1: $2, expected $3"; ok "$1: $2"; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
here=$(uname -m)-unknown-linux

if [[ -n ${BINARY:-} ]]; then
    dist=$work/dist
    mkdir "$dist"
    # A debug build is large, so the package has a stripped one.
    strip -o "$work/stripped" "$BINARY"
    DPKG_DEB_COMPRESSOR_LEVEL=0 packaging/pack.sh "$work/stripped" "$here-gnu" "$dist" >"$work/log"
    packaging/python.sh "$dist" >>"$work/log"
    packaging/sums.sh "$dist" >>"$work/log"
else
    dist=$PWD/target/dist
    [[ -f $dist/SHA256SUMS ]] || die 'target/dist has no release: packaging/dist.sh makes one'
fi

# Checks the files and their sums.
(cd "$dist" && sha256sum --check --strict --quiet SHA256SUMS) || die 'SHA256SUMS'
expect 'files that have a sum' "$(cd "$dist" && find . -type f ! -name SHA256SUMS | wc -l)" "$(wc -l <"$dist/SHA256SUMS")"

# A release's notes are a version's section.
grep -q '^### ' <<<"$(packaging/notes.sh "$version")" || die 'the changelog has no notes'
! packaging/notes.sh 0.0.0 2>/dev/null || die 'a version that the changelog lacks has notes'

# The Python package, of the program's version. Its dependencies are those of its tests.
for file in "$dist"/cdc_export-"$version"-py3-none-any.whl "$dist"/cdc_export-"$version".tar.gz; do
    [[ -f $file ]] || die "there is no $file"
done
mkdir "$work/python"
python3 -m zipfile -e "$dist/cdc_export-$version-py3-none-any.whl" "$work/python"
PYTHONPATH=$work/python "$(tests/venv.sh python)" -m cdc_export duckdb --help | grep -q -- --consumer || die 'the wheel does not run'
[[ -f $work/python/cdc_export/py.typed ]] || die 'the wheel has no types'
ok "the wheel and the sdist of $version"

python=$(tests/venv.sh sbom)
# The tree of the one that runs here.
native=
for archive in "$dist"/cdc-export-*.tar.gz; do
    name=$(basename "$archive" .tar.gz)
    target=${name#"cdc-export-$version-"}
    tar -C "$work" -xzf "$archive"
    tree=$work/$name
    if [[ $target == "$here"* ]]; then
        native=$tree
    fi
done
[[ -n $native ]] || die "there is no archive for $here"

# The commit is in releases: a clone's last one.
said=$("$native/cdc-export" --version)
if [[ -z ${BINARY:-} ]]; then
    commit=$(TZ=UTC git log -1 --no-show-signature --abbrev=7 --date=format-local:%F --format='%h %cd')
    expect 'version' "$said" "cdc-export $version ($commit)"
else
    [[ $said == "cdc-export $version"* ]] || die "version: $said"
fi
commands=$("$native/cdc-export" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]\+\) .*/\1/p' | grep -v '^help$')

for archive in "$dist"/cdc-export-*.tar.gz; do
    name=$(basename "$archive" .tar.gz) tree=$work/$(basename "$archive" .tar.gz)
    target=${name#"cdc-export-$version-"}
    printf '%s:\n' "$target"

    for command in $commands; do
        page=$tree/man/cdc-export-$command.1
        [[ -s $page ]] || die "no page for $command"
    done
    faults=$(for page in "$tree"/man/*.1; do groff -man -Tutf8 -ww "$page" 2>&1 >/dev/null; done)
    [[ -z $faults ]] || die "man pages: $faults"
    ok "$(find "$tree/man" -name '*.1' | wc -l) man pages"

    bash -n "$tree/completions/cdc-export.bash"
    # As Tab does after `cdc-export data`, by the function that the script names.
    # shellcheck disable=SC2016
    completed=$(bash --norc -c '. "$1"; COMP_WORDS=(cdc-export data) COMP_CWORD=1; by=$(complete -p cdc-export | grep -o -- "-F [^ ]*")
        "${by#-F }" cdc-export data cdc-export; echo "${COMPREPLY[*]}"' - "$tree/completions/cdc-export.bash")
    expect 'completed' "$completed" datasets
    grep -q '^#compdef cdc-export' "$tree/completions/cdc-export.zsh" || die 'zsh'
    grep -q '^complete -c cdc-export' "$tree/completions/cdc-export.fish" || die 'fish'

    "$python" tests/dist_sbom.py "$tree/cdc-export.cdx.json" "$tree/cdc-export"
    cmp "$tree/cdc-export.cdx.json" "$dist/$name.cdx.json"
    grep -q '^ring ' "$tree/THIRD-PARTY-NOTICES.txt" || die 'the notices lack ring'

    [[ -z ${BINARY:-} && $target == *-musl ]] || continue
    bytes=$(stat -c %s "$tree/cdc-export")
    ((bytes <= 25000000)) || die "$bytes bytes are more than 25 MB"
    ok "$bytes bytes"
    headers=$(readelf --wide --program-headers --dynamic --file-header "$tree/cdc-export")
    if grep -q 'INTERP\|(NEEDED)' <<<"$headers"; then die 'it is not static'; fi
    # On aarch64 rustc makes no other ones.
    [[ $target != x86_64-* ]] || grep -q 'Type: *DYN' <<<"$headers" || die 'its addresses are the same in each process'
    ok 'static'
    if grep -qF "$HOME/" "$tree/cdc-export"; then die "it names $HOME"; fi
done

# A Postgres on a port of 127.0.0.1, since an empty folder has no socket's.
start_postgres() {
    local bin as=()
    bin=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -1)
    mkdir "$work/postgres"
    if [[ $(id -u) == 0 ]]; then
        chown postgres "$work/postgres"
        as=(setpriv --reuid=postgres --regid=postgres --init-groups)
    fi
    "${as[@]}" "$bin/initdb" --no-sync -A trust -U postgres -D "$work/postgres/data" >"$work/log"
    port=$((43000 + RANDOM % 1000))
    (cd "$work/postgres" && exec "${as[@]}" "$bin/postgres" -D data -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c fsync=off) 2>"$work/log" &
    processes+=($!)
    for _ in {1..100}; do
        ! "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" || return 0
        sleep 0.1
    done
    die 'no Postgres'
}

# A folder with nothing in it but the program, as somebody without rights.
if [[ -z ${BINARY:-} && $(id -u) == 0 ]]; then
    printf 'in an empty folder:\n'
    empty=$work/empty
    mkdir "$empty"
    cp "$native/cdc-export" "$empty/"
    # Its path: `env -i` leaves none to look in.
    chrooted=("$(command -v chroot)" --userspec=65534:65534 "$empty")
    expect 'version' "$(env -i "${chrooted[@]}" /cdc-export --version)" "$said"
    grep -q '^Commands:' <<<"$(env -i "${chrooted[@]}" /cdc-export --help)" || die 'no help'
    start_postgres
    install -d -o 65534 -g 65534 "$empty/output"
    env -i DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres" PORT=0 LOG_FORMAT=json OUTPUT_DIR=/output SEED_ROWS=5000 \
        "${chrooted[@]}" /cdc-export 2>"$work/log" &
    processes+=($!)
    api=$(address_in "$work/log" "${processes[-1]}")
    job=$(call POST /exports/full | member jobId)
    expect 'an export' "$(call GET "/exports/$job?wait=60" | member status)" completed
    lines=$(cat "$empty"/output/full_search_*.csv | wc -l)
    ((lines > 1000)) || die "its file has $lines lines"
    ok "its file has $lines lines"
    kill "${processes[-1]}"
    wait "${processes[-1]}" || die 'it did not end well'
fi

deb=("$dist"/cdc-export_*_"$(dpkg --print-architecture)".deb)
printf '%s:\n' "${deb[0]##*/}"
# A binary that isn't static has to name its libraries' packages.
if [[ -z ${BINARY:-} ]] && command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error,warning "${deb[@]}" || die lintian
    ok 'lintian'
elif [[ -z ${BINARY:-} ]]; then
    echo 'not linted: there is no lintian'
fi

# A copy of this machine, that dpkg may change.
if [[ -z ${IN_NAMESPACE:-} ]]; then
    echo 'not installed: it needs root, and a container that may mount'
    exit
fi
mkdir "$work/machine"
mount -t tmpfs none "$work/machine"
mkdir "$work"/machine/{upper,work,root}
machine=$work/machine/root
if ! mount -t overlay overlay -o "lowerdir=/,upperdir=$work/machine/upper,workdir=$work/machine/work" "$machine" 2>"$work/log"; then
    echo "not installed: no overlay can be mounted here: $(<"$work/log")"
    exit
fi
mount --rbind /dev "$machine/dev"
mount -t proc proc "$machine/proc"
mkdir -p "$machine/debs"
cp "${deb[0]}" "$machine/debs/this.deb"
# The next version is the same with another number, and another file of settings.
sed '$a# Of the next version.' packaging/debian/environment >"$work/environment"
cp -r packaging "$work/packaging"
cp "$work/environment" "$work/packaging/debian/environment"
SOURCE_DATE_EPOCH=$(date +%s) VERSION=99.0.0-rc.1 DPKG_DEB_COMPRESSOR_LEVEL=0 "$work/packaging/deb.sh" "$native" "$here-gnu" "$machine/debs" >"$work/log"
mv "$machine"/debs/cdc-export_99* "$machine/debs/next.deb"

on_it() { chroot "$machine" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
mode() { on_it stat -c '%U:%G %a' "$1"; }
is_there() { [[ -e $machine$1 ]] || die "$1 is not there"; }
is_gone() { [[ ! -e $machine$1 ]] || die "$1 is still there"; }
dpkg_on_it() { on_it dpkg "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; die "dpkg $*"; }; }

[[ -z $(on_it sh -c 'getent passwd cdc-export; ls -d /etc/cdc-export /var/lib/cdc-export 2>/dev/null') ]] ||
    die 'this machine has an installed cdc-export, or what is left of one'
dpkg_on_it --install /debs/this.deb
expect 'installed' "$(on_it cdc-export --version)" "$said"
expect 'its settings' "$(mode /etc/cdc-export/environment)" 'root:cdc-export 640'
expect 'their folder' "$(mode /etc/cdc-export)" 'root:cdc-export 750'
expect 'its own folder' "$(mode /var/lib/cdc-export)" 'cdc-export:cdc-export 750'
expect 'its account' "$(on_it getent passwd cdc-export | cut -d: -f6,7)" '/var/lib/cdc-export:/usr/sbin/nologin'
is_gone /etc/systemd/system/multi-user.target.wants/cdc-export.service
if command -v systemd-analyze >/dev/null; then
    on_it systemd-analyze verify /usr/lib/systemd/system/cdc-export.service >"$work/log" 2>&1 || die 'the unit'
    ok 'its unit, which is not enabled'
fi
is_there /usr/share/man/man1/cdc-export-pull.1.gz
# shellcheck disable=SC2016
on_it bash -c '. /usr/share/bash-completion/completions/cdc-export && complete -p cdc-export' >/dev/null || die 'no completion'
expect 'md5sums' "$(on_it dpkg --verify cdc-export)" ''
if [[ -z ${BINARY:-} ]]; then
    # On a machine with glibc a static program fetches the Postgres that runs there.
    mount -t tmpfs none "$machine/usr/lib/postgresql"
    on_it sh -c 'cd /var/lib/cdc-export && HTTPS_PROXY=http://127.0.0.1:1 setpriv --reuid=cdc-export --regid=cdc-export --clear-groups cdc-export' \
        >"$work/log" 2>&1 && die 'it started without Postgres'
    grep -q "$(uname -m)-unknown-linux-gnu" "$work/log" || die 'it looked for another Postgres'
    ok 'the Postgres it would fetch is one for glibc'
fi

# Changes of an administrator stay, and so do files of the service.
echo 'PORT=8081' >>"$machine/etc/cdc-export/environment"
chroot "$machine" chgrp adm /etc/cdc-export/environment
echo 1 >"$machine/var/lib/cdc-export/written"
dpkg_on_it --force-confold --install /debs/next.deb
expect 'upgraded' "$(on_it dpkg-query -Wf '${Version}' cdc-export)" '99.0.0~rc.1-1'
expect 'its settings' "$(mode /etc/cdc-export/environment) $(tail -1 "$machine/etc/cdc-export/environment")" 'root:adm 640 PORT=8081'
is_there /etc/cdc-export/environment.dpkg-dist
is_there /var/lib/cdc-export/written

mkdir -p "$machine/etc/systemd/system/multi-user.target.wants"
ln -s /usr/lib/systemd/system/cdc-export.service "$machine/etc/systemd/system/multi-user.target.wants/"
dpkg_on_it --remove cdc-export
for path in /usr/bin/cdc-export /usr/lib/systemd/system/cdc-export.service /usr/share/man/man1/cdc-export.1.gz /usr/share/doc/cdc-export; do
    is_gone "$path"
done
is_there /etc/cdc-export/environment
is_there /var/lib/cdc-export/written
ok 'removed: the settings and the files stay'
dpkg_on_it --purge cdc-export
for path in /etc/cdc-export /var/lib/cdc-export /etc/systemd/system/multi-user.target.wants/cdc-export.service; do
    is_gone "$path"
done
expect 'purged, what dpkg knows of it' "$(on_it dpkg-query -Wf '${Status}' cdc-export 2>/dev/null || true)" ''
