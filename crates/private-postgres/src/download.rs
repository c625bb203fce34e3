//! Downloads the Postgres programs for a machine without an installed Postgres.
//!
//! `binaries` decides when downloaded programs are used. This module must not know clusters.

use std::env::consts::{ARCH, OS};
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use crate::account::run;
use crate::data_dir::DataDir;
use crate::{Error, Settings};

/// The version that is downloaded, in the numbering of the project that publishes the archives.
const VERSION: &str = "17.11.0";
pub(super) const MAJOR: u32 = 17;

/// Returns the folder of the downloaded programs in a data folder. It may not exist.
pub(super) fn programs(data_dir: &DataDir) -> PathBuf {
    home(data_dir).join("bin")
}

fn home(data_dir: &DataDir) -> PathBuf {
    data_dir.path.join(format!("postgresql-{VERSION}"))
}

/// Downloads the programs for this machine into the data folder, completely or not at all. Downloads nothing if
/// another process has done so before. The caller must hold the lock of the folder.
pub(super) async fn ensure(settings: &Settings, data_dir: &DataDir) -> Result<(), Error> {
    if !home(data_dir).exists() {
        let ((target, sha256), fetch) =
            archive_for_this_machine().zip(settings.download).ok_or_else(|| Error::NotInstalled(String::new()))?;
        let project = "https://github.com/theseus-rs/postgresql-binaries";
        let url = format!("{project}/releases/download/{VERSION}/postgresql-{VERSION}-{target}.tar.gz");
        tracing::info!(
            event = "postgres_download",
            url,
            folder = %home(data_dir).display(),
            "no installed Postgres found, downloading one; PG_DOWNLOAD=off disables the download"
        );
        let placed = match fetch(url.clone()).await {
            Ok(bytes) => unpack(&bytes, sha256, data_dir).await,
            Err(why) => Err(why),
        };
        placed.map_err(|why| Error::NotInstalled(format!(", and {url} can't be downloaded ({why})")))?;
    }
    Ok(())
}

/// Returns the target and the SHA-256 of the archive of [`VERSION`] for this machine, if there is one.
///
/// The checksum ensures that an archive is the originally published one, even if the project changes. For a new
/// version, compare each with the checksum that is published next to the archive.
fn archive_for_this_machine() -> Option<(&'static str, &'static str)> {
    // This process may be a static binary with musl, so the machine is checked.
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let has_glibc = cfg!(target_env = "gnu") || loaders.iter().any(|loader| Path::new(loader).exists());
    Some(match (OS, ARCH) {
        ("linux", _) if !has_glibc => return None,
        ("linux", "x86_64") => {
            ("x86_64-unknown-linux-gnu", "b7a1ba6bae6499d8296e3e81b0171eecfd1766ca9aaa0057e41ad3e844e5e2e0")
        }
        ("linux", "aarch64") => {
            ("aarch64-unknown-linux-gnu", "abffda09209280ec1502b73720dc4d254fb7fff9a072e324926c600a5b16c221")
        }
        ("macos", "x86_64") => {
            ("x86_64-apple-darwin", "e43a81b15e1cfe7f9d8fd79c6d4d0366e9001a5f690e322224dca704656602f7")
        }
        ("macos", "aarch64") => {
            ("aarch64-apple-darwin", "fd4b62794b160e26973a768a1eef3248aef9d2ff23ebd6d884a4299485e28e57")
        }
        _ => return None,
    })
}

/// Unpacks an archive as the account's user, after verifying its checksum. The archive has one folder, which becomes
/// that of the programs.
async fn unpack(archive: &[u8], sha256: &str, data_dir: &DataDir) -> Result<(), String> {
    let found = hex::encode(digest(&SHA256, archive));
    if found != sha256 {
        return Err(format!("its sha256 is {found}, not {sha256}"));
    }
    let unpacked = async {
        let scratch = data_dir.make_scratch()?;
        let mut tar = data_dir.account.command("tar", scratch.path());
        tar.args(["-xzf", "-", "--strip-components=1"]);
        run(tar, archive).await?;
        data_dir.place(&scratch, &home(data_dir))
    };
    unpacked.await.map_err(|error| format!("it can't be unpacked: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use crate::account::Account;

    #[tokio::test]
    async fn archive_with_the_right_checksum_is_placed_whole() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bin = home.path().join("postgresql-0-test/bin");
        fs::create_dir_all(&bin).unwrap();
        for program in ["postgres", "initdb"] {
            fs::write(bin.join(program), "#!/bin/sh\necho 'postgres (PostgreSQL) 17.11'\n").unwrap();
            fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let tar = Command::new("tar").args(["-czf", "-", "postgresql-0-test"]).current_dir(home.path()).output();
        let archive = tar.unwrap().stdout;
        let sha256 = hex::encode(digest(&SHA256, &archive));
        let path = home.path().join("data");
        let account = Account::for_cluster(&path).unwrap();
        let data_dir = DataDir { named: path.clone(), path, account };
        let _lock = data_dir.lock().await.unwrap();

        let refused = unpack(&archive, "00", &data_dir).await.unwrap_err();
        assert_eq!(refused, format!("its sha256 is {sha256}, not 00"));
        let broken = hex::encode(digest(&SHA256, b"broken"));
        let refused = unpack(b"broken", &broken, &data_dir).await.unwrap_err();
        assert!(refused.starts_with("it can't be unpacked: tar failed: "), "{refused}");
        assert_eq!(fs::read_dir(&data_dir.path).unwrap().count(), 1, "more than the lock is left");

        unpack(&archive, &sha256, &data_dir).await.unwrap();
        assert_eq!(fs::read_dir(&data_dir.path).unwrap().count(), 2);
        let version = Command::new(programs(&data_dir).join("postgres")).arg("--version").output().unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&version), "postgres (PostgreSQL) 17.11\n");
    }
}
