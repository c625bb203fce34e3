#!/usr/bin/env bash
# The unit of deploy/systemd: by systemd's own checks, and then run by a real systemd, in a container that has a copy of this machine's /usr and
# nothing else of it, and no network: the steps of docs/guides/systemd.md as they stand, then what the unit promises. deploy_systemd.sh BINARY.
# The second part needs root, systemd-nspawn and an installed Postgres.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1
unit=deploy/systemd/cdc-export.service
work=$(mktemp -d)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# There is no binary yet at its future path.
sed "s#^ExecStart=/usr/bin/cdc-export#ExecStart=$(realpath "$binary")#" "$unit" >"$work/cdc-export.service"
verified=$(systemd-analyze verify --man=no "$work/cdc-export.service" 2>&1) || die "$verified"
[[ -z $verified ]] || die "$verified"
systemd-analyze security --offline=true --threshold=20 "$work/cdc-export.service" | tail -1

# The drain has to fit into the time that a stop has. Its default is 0, and the guide says up to 300.
grep -qx 'TimeoutStopSec=360' "$unit" || die 'TimeoutStopSec is not what docs/guides/systemd.md says'

if [[ $(id -u) != 0 ]] || ! command -v systemd-nspawn >/dev/null || ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    echo 'not run: that takes root, systemd-nspawn and a Postgres'
    exit
fi
root=$work/root
clone=$root/opt/trial/clone
mkdir -p "$root"/{usr,etc/systemd/system,var/lib,var/log,run,tmp,proc,sys,dev,root,opt/trial/bin} "$clone"/{target/release,deploy/systemd} "$work/usr"
ln -s ../run "$root/var/run"
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
printf 'root:x:0:0::/root:/bin/sh\npostgres:x:101:101::/var/lib/postgresql:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\npostgres:x:101:\nnogroup:x:65534:\n' >"$root/etc/group"
cp -r /etc/ld.so.cache /etc/alternatives "$root/etc/"
for folder in /etc/ssl /etc/postgresql-common; do [[ ! -d $folder ]] || cp -r "$folder" "$root/etc/"; done
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
echo 'ID=trial' >"$root/etc/os-release"
cp "$binary" "$clone/target/release/cdc-export"
cp "$unit" "$clone/deploy/systemd/"
awk '/^```sh$/ { inside = 1; next } /^```$/ { inside = 0 } inside' docs/guides/systemd.md >"$root/opt/trial/guide"
cat >"$root/opt/trial/bin/sudo" <<'SUDO'
#!/bin/bash
[[ $1 != -u ]] || exec setpriv --reuid="$2" --regid="$2" --init-groups "${@:3}"
exec "$@"
SUDO
printf '[Unit]\nRequires=trial.service\nAfter=trial.service\n' >"$root/etc/systemd/system/default.target"
printf '[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/opt/trial/trial\n' >"$root/etc/systemd/system/trial.service"
cat >"$root/opt/trial/trial" <<'TRIAL'
#!/bin/bash
exec >/opt/trial/out 2>&1
trap 'systemctl --no-block poweroff --force' EXIT
echo booted
fail() { echo "failed: $*"; journalctl --no-pager -o cat -u cdc-export -u trial-postgres | tail -20; exit; }
export_of() {
    local job
    job=$(curl -fsS -X POST -H 'X-Consumer-ID: trial' "http://127.0.0.1:8080/exports/$1" | grep -o '[0-9a-f-]\{36\}' | head -1)
    curl -fsS "http://127.0.0.1:8080/exports/$job?wait=30" | grep -q '"status":"completed"' || fail "$1"
}

# The guide's machine has a Postgres, with a table in it.
bin=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -1)
install -d -o postgres -g postgres /var/lib/postgresql /run/postgresql
setpriv --reuid=postgres --regid=postgres --init-groups "$bin/initdb" --no-sync -A peer -D /var/lib/postgresql/data >/dev/null || fail initdb
systemd-run --quiet --unit=trial-postgres --uid=postgres "$bin/postgres" -D /var/lib/postgresql/data -k /run/postgresql -c fsync=off
export PATH=/opt/trial/bin:$PATH
for _ in {1..100}; do
    "$bin/pg_isready" -q -h /run/postgresql && break
    sleep 0.1
done
sudo -u postgres psql -q -c 'create role shop' -c 'create database shop owner shop' || fail 'the database'
sudo -u postgres psql -q -d shop -c 'set role shop' -c "create table orders as select id, 'x' as what from generate_series(1, 10) id" \
    -c 'alter table orders add primary key (id)' || fail 'the table'
cd /opt/trial/clone
bash -ex /opt/trial/guide || fail 'the guide'
[[ $(cat full_orders_warehouse_*.csv | wc -l) == 11 ]] || fail "the guide's file: $(ls)"
sudo -u postgres psql -q -d shop -c 'delete from orders where id = 7'
cdc-export export delta --consumer warehouse --dataset orders --output . --server http://localhost:8080 || fail "the guide's delta"
grep -q '^DELETE,7' delta_orders_warehouse_*.csv || fail "the delta: $(cat delta_*.csv)"
systemctl stop cdc-export

# Without settings but one: its private Postgres.
rm -r /var/lib/cdc-export
echo SEED_ROWS=2000 >/etc/cdc-export/environment
systemctl start cdc-export || fail start
for _ in {1..150}; do
    curl -fs -o /dev/null http://127.0.0.1:8080/health/ready && break
    sleep 0.2
done
export_of full
curl -fsS -o /dev/null -X DELETE http://127.0.0.1:8080/users/42 || fail 'a change'
export_of delta
mode=$(stat -c '%U %a' /var/lib/cdc-export/output/full_trial_*.csv)
[[ $mode == 'cdc-export 640' ]] || fail "the file is of $mode"
pid=$(systemctl show -P MainPID cdc-export)
grep -q '^Seccomp:.*2$' "/proc/$pid/status" && grep -q '^CapBnd:.*0000000000000000$' "/proc/$pid/status" || fail 'restrictions'
systemctl stop cdc-export || fail stop
[[ $(systemctl show -P Result cdc-export) == success ]] || fail 'a stop'
pgrep -u cdc-export -a && fail 'something still runs'
# A wrong setting is no reason to start again.
echo PORT=http >>/etc/cdc-export/environment
systemctl start cdc-export
sleep 6
state=$(systemctl show -P ActiveState -P ExecMainStatus -P NRestarts cdc-export | sort | tr '\n' ' ')
[[ $state == '0 2 failed ' ]] || fail "after a wrong setting: $state"
echo passed
TRIAL
chmod +x "$root/opt/trial/trial" "$root/opt/trial/bin/sudo"
timeout 180 systemd-nspawn --quiet --directory="$root" --overlay="/usr:$work/usr:/usr" --private-network --register=no --keep-unit --link-journal=no \
    --machine="cdc-export-trial-$$" --boot </dev/null >"$work/boot" 2>&1 || true
# The groups of processes that it leaves empty.
for group in /sys/fs/cgroup/{,unified/,systemd/}{payload,supervisor}; do
    [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
done
# A container may forbid another one in it.
if [[ ! -e $root/opt/trial/out ]]; then
    echo "not run: no systemd boots here: $(tail -1 "$work/boot")"
    exit
fi
[[ $(tail -1 "$root/opt/trial/out") == passed ]] || die "under systemd: $(cat "$root/opt/trial/out")"
echo 'under a real systemd: the guide, exports, a stop, a wrong setting'
