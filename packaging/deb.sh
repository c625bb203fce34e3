#!/usr/bin/env bash
# Makes Debian's package of what packaging/pack.sh has put together: packaging/deb.sh TREE TARGET FOLDER, with VERSION and SOURCE_DATE_EPOCH.
#
#   MAINTAINER='NAME <ADDRESS>'    who answers for the package
set -euo pipefail
tree=$(realpath "$1") out=$(realpath "$3")
cd "$(dirname "$0")/debian"
case $2 in
    x86_64-*) architecture=amd64 ;;
    aarch64-*) architecture=arm64 ;;
    *) echo "error: Debian has no name for $2" >&2; exit 1 ;;
esac
# 1.0.0-rc.1 comes before 1.0.0, which Debian writes with a tilde.
# shellcheck disable=SC2153
version=${VERSION/-/\~}-1
maintainer=${MAINTAINER:-cdc-export <maintainers@cdc-export.invalid>}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
root=$work/root doc=$work/root/usr/share/doc/cdc-export
put() { install -D -m "${3:-644}" "$1" "$root/$2"; }
put "$tree/cdc-export" usr/bin/cdc-export 755
put "$tree/deploy/systemd/cdc-export.service" usr/lib/systemd/system/cdc-export.service
put environment etc/cdc-export/environment 640
put "$tree/completions/cdc-export.bash" usr/share/bash-completion/completions/cdc-export
put "$tree/completions/cdc-export.zsh" usr/share/zsh/vendor-completions/_cdc-export
put "$tree/completions/cdc-export.fish" usr/share/fish/vendor_completions.d/cdc-export.fish
for page in "$tree"/man/*; do
    put "$page" "usr/share/man/man1/${page##*/}"
done
put copyright usr/share/doc/cdc-export/copyright
put "$tree/CHANGELOG.md" usr/share/doc/cdc-export/changelog
for file in README.md THIRD-PARTY-NOTICES.txt cdc-export.cdx.json; do
    put "$tree/$file" "usr/share/doc/cdc-export/$file"
done
put "$tree/.env.example" usr/share/doc/cdc-export/settings.example
cp -r "$tree"/{docs,deploy} "$doc/"
cat >"$doc/changelog.Debian" <<END_OF_FILE
cdc-export ($version) stable; urgency=medium

  * Version $VERSION. changelog.gz says what is new.

 -- $maintainer  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END_OF_FILE
put lintian-overrides usr/share/lintian/overrides/cdc-export
gzip -9n "$root"/usr/share/man/man1/* "$doc"/{changelog,changelog.Debian,THIRD-PARTY-NOTICES.txt,cdc-export.cdx.json}

mkdir "$root/DEBIAN"
for script in postinst prerm postrm; do
    install -m 755 "$script" "$root/DEBIAN/"
done
echo /etc/cdc-export/environment >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
cat >"$root/DEBIAN/control" <<END_OF_FILE
Package: cdc-export
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Section: database
Priority: optional
Installed-Size: $(du -sk --apparent-size "$root/usr" | cut -f1)
Depends: adduser
Recommends: ca-certificates
Suggests: postgresql
Description: hands a Postgres table's rows to consumers as files
 A service beside a Postgres that exports tables as CSV, JSON lines or Parquet,
 whole or what has changed since a consumer's last export, with nothing lost
 and nothing twice.
 .
 The service is neither enabled nor started by the installation: its settings
 are in /etc/cdc-export/environment.
END_OF_FILE
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
# As root's, whoever packs it.
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/cdc-export_${version}_$architecture.deb"
