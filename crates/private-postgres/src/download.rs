//! Downloads the Postgres programs from a mirror for a machine without an installed Postgres.
//!
//! `binaries` decides when downloaded programs are used. This module must not know clusters.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ring::digest::{SHA256, digest};

use crate::account::Account;
use crate::data_dir::{DataDir, LockedDataDir};
use crate::files::HeldFolder;
use crate::mirror::{Checksum, Mirror};
use crate::{Error, Fetch};

/// The version that is downloaded, in the mirror's numbering.
const VERSION: &str = "17.11.0";
/// The major version that is downloaded.
pub(super) const MAJOR: u32 = 17;

/// The SHA-256 of each archive of [`VERSION`], by target.
///
/// They ensure that an archive is the originally published one, even if the mirror changes. For a target without an
/// entry, the operator must set a checksum. For a new version, compare each entry with the checksum that is published
/// next to the archive.
const CHECKSUMS: [(&str, &str); 4] = [
    ("x86_64-unknown-linux-gnu", "b7a1ba6bae6499d8296e3e81b0171eecfd1766ca9aaa0057e41ad3e844e5e2e0"),
    ("aarch64-unknown-linux-gnu", "abffda09209280ec1502b73720dc4d254fb7fff9a072e324926c600a5b16c221"),
    ("x86_64-apple-darwin", "e43a81b15e1cfe7f9d8fd79c6d4d0366e9001a5f690e322224dca704656602f7"),
    ("aarch64-apple-darwin", "fd4b62794b160e26973a768a1eef3248aef9d2ff23ebd6d884a4299485e28e57"),
];

/// The largest size of an archive. The current archives have about 12 MB.
const MAX_BYTES: usize = 256 << 20;

/// Returns the folder of the downloaded programs in a data folder. It may not exist.
pub(super) fn programs(data_dir: &DataDir) -> PathBuf {
    home(data_dir).join("bin")
}

fn home(data_dir: &DataDir) -> PathBuf {
    data_dir.path.join(format!("postgresql-{VERSION}"))
}

/// Downloads the programs into the data folder, completely or not at all. The archive must have the expected checksum.
pub(super) fn place(mirror: &Mirror, fetch: Fetch, data_dir: &LockedDataDir) -> Result<(), Error> {
    let Some(target) = target() else { return Err(Error::NotInstalled) };
    let url = format!("{}/{VERSION}/postgresql-{VERSION}-{target}.tar.gz", mirror.url);
    let failed = |why| Error::Download { url: url.clone(), why };
    let checksum = checksum(mirror, &target).map_err(failed)?;
    let home = home(data_dir);
    tracing::info!(
        event = "postgres_download",
        url,
        folder = %home.display(),
        "no installed Postgres found, downloading one; PG_DOWNLOAD=off disables the download"
    );
    let archive = checked(fetch, &url, &checksum).map_err(failed)?;
    let scratch = data_dir.make_scratch()?;
    let placed = match unpack(&archive, &scratch, &data_dir.account) {
        Ok(unpacked) => unpacked.move_only_folder(&home).map_err(Error::file("place a download in", &home)),
        Err(error) => Err(failed(format!("it can't be unpacked: {error}"))),
    };
    // After a crash, the next start removes the scratch folder.
    data_dir.account.remove_folder(&scratch).map_err(Error::file("remove", &scratch))?;
    placed?;
    data_dir.sync()
}

/// Returns the target of this machine in the names of the archives. Returns `None` if the mirror has no archive for it.
fn target() -> Option<String> {
    let architecture = if cfg!(target_arch = "x86_64") {
        "x86_64"
    } else if cfg!(target_arch = "aarch64") {
        "aarch64"
    } else {
        return None;
    };
    let system = if cfg!(target_os = "linux") {
        if has_glibc() { "unknown-linux-gnu" } else { "unknown-linux-musl" }
    } else if cfg!(target_os = "macos") {
        "apple-darwin"
    } else {
        return None;
    };
    Some(format!("{architecture}-{system}"))
}

/// Returns true if programs linked to glibc run on this Linux. This process may be a static binary with musl, so the
/// machine is checked.
fn has_glibc() -> bool {
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    cfg!(target_env = "gnu") || loaders.iter().any(|loader| Path::new(loader).exists())
}

/// Returns the expected checksum of a target's archive: the operator's, else the one in [`CHECKSUMS`].
fn checksum(mirror: &Mirror, target: &str) -> Result<Checksum, String> {
    let known = || CHECKSUMS.iter().find(|(of, _)| *of == target).map(|(_, sum)| Checksum((*sum).to_owned()));
    mirror
        .checksum
        .clone()
        .or_else(known)
        .ok_or_else(|| format!("no SHA-256 is known for the archive for {target}: set PG_DOWNLOAD_SHA256"))
}

/// Downloads an archive and verifies its checksum.
fn checked(fetch: Fetch, url: &str, Checksum(expected): &Checksum) -> Result<Vec<u8>, String> {
    let archive = fetch(url, MAX_BYTES)?;
    let found = hex::encode(digest(&SHA256, &archive));
    if found == *expected { Ok(archive) } else { Err(format!("its sha256 is {found}, not {expected}")) }
}

/// Unpacks an archive into a folder as the account's user. Root would follow links that this user may have created in
/// the folder.
fn unpack(archive: &[u8], scratch: &Path, account: &Account) -> io::Result<HeldFolder> {
    let folder = HeldFolder::open(scratch, account)?;
    let tar = account
        .command(Path::new("tar"), scratch)
        .args(["-xzf", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut tar = tar.map_err(|error| io::Error::new(error.kind(), format!("can't run tar: {error}")))?;
    // If `tar` ends before it has read everything, its output contains the reason.
    let fed = tar.stdin.take().expect("it is piped").write_all(archive);
    let output = tar.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(said.lines().next().unwrap_or("tar failed").to_owned()));
    }
    fed?;
    // The files must be durable before the caller renames the folder.
    rustix::fs::sync();
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_without_a_known_checksum_is_refused() {
        for (target, known) in CHECKSUMS {
            let known: Checksum = known.parse().unwrap();
            assert_eq!(checksum(&Mirror::default(), target), Ok(known));
        }
        let refused = checksum(&Mirror::default(), "x86_64-unknown-linux-musl").unwrap_err();
        assert!(refused.contains("x86_64-unknown-linux-musl") && refused.contains("PG_DOWNLOAD_SHA256"), "{refused}");
        let chosen: Checksum = "AB".repeat(32).parse().unwrap();
        for target in [CHECKSUMS[0].0, "x86_64-unknown-linux-musl"] {
            let mirror = Mirror::default().with_checksum(chosen.clone());
            assert_eq!(checksum(&mirror, target), Ok(Checksum("ab".repeat(32))));
        }
    }
}
