//! Selects the Postgres binaries: installed ones, or ones that `download` has placed in the data folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::account::{Account, run};
use crate::data_dir::DataDir;
use crate::{Error, Settings, download};

/// A folder with `postgres` and `initdb`, and their major version.
#[derive(Debug)]
pub(super) struct Binaries {
    folder: PathBuf,
    pub(super) major: u32,
}

impl Binaries {
    /// Finds the binaries with the data's major version, or the first ones if there is no data. Returns `None` if the
    /// binaries must be downloaded first.
    ///
    /// If the settings have a `bin_dir`, it is the only candidate. Otherwise downloaded programs come last.
    pub(super) async fn find(settings: &Settings, data_dir: &DataDir) -> Result<Option<Binaries>, Error> {
        let data = data_dir.cluster();
        let wanted = major_of_data(&data)?;
        if let Some(folder) = &settings.bin_dir {
            let found = Binaries::in_folder(folder, &data_dir.account).await?;
            let found = found.ok_or_else(|| Error::NoBinaries(folder.to_owned()))?;
            return choose(vec![found], wanted, &data).map(Some);
        }
        let mut folders = if settings.ignores_installed { Vec::new() } else { candidates(&settings.search_path) };
        folders.push(download::programs(data_dir));
        let found = installed(&folders, &data_dir.account).await;
        let suits = |major| wanted.is_none_or(|wanted| wanted == major);
        if settings.download.is_some() && suits(download::MAJOR) && !found.iter().any(|found| suits(found.major)) {
            return Ok(None);
        }
        choose(found, wanted, &data).map(Some)
    }

    pub(super) async fn downloaded(data_dir: &DataDir) -> Result<Binaries, Error> {
        let found = Binaries::in_folder(&download::programs(data_dir), &data_dir.account).await?;
        found.ok_or(Error::NotInstalled(String::new()))
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns the binaries in a folder. Returns `None` if `postgres` or `initdb` is missing.
    ///
    /// The account's user runs `postgres` to determine its version, because root must not run a file that this user may
    /// have written.
    async fn in_folder(folder: &Path, account: &Account) -> Result<Option<Binaries>, Error> {
        // The programs run in another working folder, so the path must be absolute.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let (postgres, initdb) = (folder.join("postgres"), folder.join("initdb"));
        if !postgres.is_file() || !initdb.is_file() {
            return Ok(None);
        }
        let mut version = account.command(&postgres, Path::new("/"));
        version.arg("--version");
        let line = run(version, b"").await?;
        let why = || Error::Program { program: postgres, detail: format!("its version is {:?}", line.trim_end()) };
        Ok(Some(Binaries { folder, major: major_in(&line).ok_or_else(why)? }))
    }
}

fn choose(mut installed: Vec<Binaries>, wanted: Option<u32>, data: &Path) -> Result<Binaries, Error> {
    let Some(wanted) = wanted else {
        return installed.into_iter().next().ok_or(Error::NotInstalled(String::new()));
    };
    if let Some(at) = installed.iter().position(|found| found.major == wanted) {
        return Ok(installed.swap_remove(at));
    }
    let majors: BTreeSet<u32> = installed.iter().map(|found| found.major).collect();
    let majors: Vec<String> = majors.iter().rev().map(u32::to_string).collect();
    let found = if majors.is_empty() { "none".to_owned() } else { majors.join(", ") };
    Err(Error::VersionMismatch { folder: data.to_owned(), data: wanted, found })
}

/// Returns the binaries in these folders, in the same order. Skips binaries whose version can't be determined.
async fn installed(folders: &[PathBuf], account: &Account) -> Vec<Binaries> {
    let mut installed = Vec::new();
    for folder in folders {
        match Binaries::in_folder(folder, account).await {
            Ok(found) => installed.extend(found),
            Err(error) => {
                tracing::warn!(event = "postgres_unusable", folder = %folder.display(), error = %error, "ignored an installed Postgres whose version can't be determined");
            }
        }
    }
    installed
}

/// Returns the folders that may contain an installed Postgres, in the order of preference: Debian's versions, `PATH`,
/// Homebrew, PGDG on Fedora.
fn candidates(search_path: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders = versioned("/usr/lib/postgresql", "");
    // A relative entry of PATH could lead to programs of any user.
    folders.extend(search_path.iter().filter(|entry| entry.is_absolute()).cloned());
    folders.extend(versioned("/opt/homebrew/opt", "postgresql@"));
    folders.extend(versioned("/usr/local/opt", "postgresql@"));
    folders.extend(versioned("/usr", "pgsql-"));
    folders
}

/// Returns the folders `{parent}/{prefix}{number}/bin`, highest number first.
fn versioned(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<(f64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            // Old major versions have two numbers, for example 9.6.
            let version = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    found.into_iter().map(|(_, folder)| folder).collect()
}

/// Reads the major version from `PG_VERSION`. Returns `None` if there is no data yet.
fn major_of_data(data: &Path) -> Result<Option<u32>, Error> {
    let file = data.join("PG_VERSION");
    match fs::read_to_string(&file) {
        Ok(version) => leading_number(&version).map(Some).ok_or(Error::NotData(data.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !data.exists() => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(Error::NotData(data.to_owned()))
        }
        Err(error) => Err(Error::file("read", &file)(error)),
    }
}

/// Returns the major version in the output of `postgres --version`.
///
/// A release prints `postgres (PostgreSQL) 17.2 (Debian …)`. Betas and builds of a branch print `18beta1` or `19devel`.
fn major_in(line: &str) -> Option<u32> {
    leading_number(line.split_once("(PostgreSQL) ")?.1)
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_data_decides_and_a_mismatch_names_every_version() {
        let install = "no installed Postgres found: set DATABASE_URL, \
                       or install one (Debian, Ubuntu: `apt-get install postgresql`; \
                       Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql@17`)";
        let mismatch = |found: &str| {
            format!(
                "the data in /d is of Postgres 15, the versions found are {found}: \
                 install Postgres 15 or set PG_BIN_DIR to it"
            )
        };
        for (majors, wanted, chosen) in [
            (&[18, 15][..], Some(15), Ok(15)),
            (&[18, 15], None, Ok(18)),
            (&[], None, Err(install.to_owned())),
            (&[9, 18], Some(15), Err(mismatch("18, 9"))),
            (&[], Some(15), Err(mismatch("none"))),
        ] {
            let found = majors.iter().map(|major| Binaries { folder: PathBuf::new(), major: *major }).collect();
            let found = choose(found, wanted, Path::new("/d"));
            assert_eq!(found.map(|found| found.major).map_err(|error| error.to_string()), chosen);
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let root = tempfile::tempdir().unwrap();
        for name in ["pg-9.6", "pg-10", "pg-17", "pg-x", "other"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let folders = versioned(root.path().to_str().unwrap(), "pg-");
        let expected = ["pg-17/bin", "pg-10/bin", "pg-9.6/bin"].map(|name| root.path().join(name));
        assert_eq!(folders, expected);
    }

    #[test]
    fn majors_are_read_from_releases_and_betas() {
        for (text, major) in
            [("17.2 (Debian 17.2-1)", Some(17)), ("18beta1", Some(18)), ("15\n", Some(15)), ("devel", None)]
        {
            assert_eq!(leading_number(text), major, "{text}");
        }
    }
}
