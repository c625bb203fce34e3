//! Postgres' programs from a web folder, for a machine that has none. It knows nothing of clusters; who may use what it fetched
//! is for `binaries` to say.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use crate::postgres::embedded::account::Account;
use crate::postgres::embedded::cluster::{SCRATCH, sync_folder};
use crate::postgres::embedded::files::HeldFolder;
use crate::postgres::embedded::folder::{Folder, Place};
use crate::postgres::embedded::{Error, Mirror};
use crate::telemetry::chain;

/// What is fetched, as the mirror numbers it, and its major version.
const VERSION: &str = "17.5.0";
pub(super) const MAJOR: u32 = 17;

/// An archive of the programs has some 12 MB; what is much larger is something else.
const MAX_BYTES: u64 = 256 << 20;

/// How long a mirror may take to begin, and to send it all.
const PATIENCE: Duration = Duration::from_secs(30);
const DOWNLOAD_PATIENCE: Duration = Duration::from_secs(600);

/// The folder of a place's downloaded programs, there or not.
pub(super) fn programs(place: &Place) -> PathBuf {
    home(place).join("bin")
}

fn home(place: &Place) -> PathBuf {
    place.path.join(format!("postgresql-{VERSION}"))
}

/// Fetches the programs into the folder, whole or not at all: their checksum has to match.
pub(super) fn fetch(mirror: &Mirror, folder: &Folder) -> Result<(), Error> {
    let Some(target) = target() else { return Err(Error::NotInstalled) };
    let url = format!("{}/{VERSION}/postgresql-{VERSION}-{target}.tar.gz", mirror.0);
    let home = home(&folder.place);
    tracing::info!(
        event = "postgres_download",
        url,
        folder = %home.display(),
        "no installed Postgres found, downloading one; PG_DOWNLOAD=off forbids that"
    );
    let failed = |why| Error::Download { url: url.clone(), why };
    let archive = checked(&url).map_err(failed)?;
    let scratch = folder.place.path.join(format!("{SCRATCH}{}", uuid::Uuid::new_v4().simple()));
    folder.place.account.make_folder(&scratch).map_err(Error::file("make", &scratch))?;
    let placed = match unpack(&archive, &scratch, &folder.place.account) {
        Ok(unpacked) => unpacked.move_only_folder(&home).map_err(Error::file("place a download in", &home)),
        Err(error) => Err(failed(format!("it can't be unpacked: {}", chain(&error)))),
    };
    // What a crash leaves is swept with half-made clusters.
    fs::remove_dir_all(&scratch).map_err(Error::file("remove", &scratch))?;
    placed?;
    sync_folder(&folder.place.path)
}

/// The machine, as the names of archives have it; `None` where there are none for it.
fn target() -> Option<String> {
    let architecture = if cfg!(target_arch = "x86_64") {
        "x86_64"
    } else if cfg!(target_arch = "aarch64") {
        "aarch64"
    } else {
        return None;
    };
    let system = if cfg!(all(target_os = "linux", target_env = "musl")) {
        "unknown-linux-musl"
    } else if cfg!(target_os = "linux") {
        "unknown-linux-gnu"
    } else if cfg!(target_os = "macos") {
        "apple-darwin"
    } else {
        return None;
    };
    Some(format!("{architecture}-{system}"))
}

/// An archive whose sha256 is the one that its mirror states.
fn checked(url: &str) -> Result<Vec<u8>, String> {
    // One for the process; refused if there is one already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let agent: Agent = Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_global(Some(DOWNLOAD_PATIENCE))
        .build()
        .into();
    let get = |url: &str| {
        let response = agent.get(url).call()?;
        response.into_body().with_config().limit(MAX_BYTES).read_to_vec()
    };
    let stated = get(&format!("{url}.sha256")).map_err(|error| format!("its sha256: {}", chain(&error)))?;
    let stated = String::from_utf8_lossy(&stated);
    // Alone, or followed by the file's name as sha256sum writes it.
    let stated = stated.split_whitespace().next().unwrap_or_default();
    let archive = get(url).map_err(|error| chain(&error))?;
    let found: String = digest(&SHA256, &archive).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(stated) {
        Ok(archive)
    } else {
        Err("its sha256 is not the one stated beside it".to_owned())
    }
}

/// Unpacks an archive into a folder. The account does it: root would follow whatever link the account's
/// user may put into a folder of its own.
fn unpack(archive: &[u8], scratch: &Path, account: &Account) -> io::Result<HeldFolder> {
    let folder = HeldFolder::open(scratch, account)?;
    let tar = account
        .command(Path::new("tar"), scratch)
        .args(["-xzf", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut tar = tar.map_err(|error| io::Error::new(error.kind(), format!("can't run tar: {error}")))?;
    // It may end before it has read everything, and then says why.
    let fed = tar.stdin.take().expect("it is piped").write_all(archive);
    let output = tar.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(said.lines().next().unwrap_or("tar failed").to_owned()));
    }
    fed?;
    // Before the rename: after a power cut there is all of it or nothing.
    rustix::fs::sync();
    Ok(folder)
}
