//! The service's binaries, as cargo builds them, and the failpoints in the source.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::environment;

const BINARY: &str = "cdc-export";

pub(crate) fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// Builds the binary of the source tree `tree`. The output goes to `target`, if given, else to cargo's usual folder.
pub(crate) async fn build(tree: &Path, profile: Profile, target: Option<&Path>) -> Result<PathBuf> {
    let mut cargo = Command::new(environment("CARGO").unwrap_or_else(|| "cargo".to_owned()));
    cargo.args(["build", "--locked", "--bin", BINARY, "--message-format", "json-render-diagnostics"]);
    // Builds this program too. Otherwise the dependencies would have other features than for the tests and this
    // program, and cargo would compile them again.
    cargo.args(["--example", "torture"]);
    if let Some(features) = environment("FEATURES") {
        cargo.args(["--features", &features]);
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    for name in inherited() {
        cargo.env_remove(name);
    }
    if let Some(target) = target {
        cargo.arg("--target-dir").arg(target);
        // The code of a control needn't pass the lints.
        cargo.env_remove("RUSTC_WORKSPACE_WRAPPER");
    }
    let built = cargo.current_dir(tree).stderr(std::process::Stdio::inherit()).output().await?;
    ensure!(built.status.success(), "cargo can't build {}", tree.display());
    let messages = String::from_utf8(built.stdout)?;
    let mut artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    artifacts
        .find_map(|message| {
            let ours = message["target"]["name"] == BINARY && message["executable"].is_string();
            ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        })
        .context("cargo names no executable")
}

/// Names of the variables that cargo set for the package when it started this program. Some build scripts depend on
/// them (`ring`'s on `OUT_DIR`). Passing them on would run these scripts again, and compile all crates that need them
/// again.
#[expect(clippy::disallowed_methods, reason = "the service's configuration is not for its torturer")]
fn inherited() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| {
        let is_of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        name.to_str().is_some_and(|name| is_of_package(name) || name == "OUT_DIR")
    })
}

/// Prefixes of the failpoints that an export can hit. The failpoints of a start have their own tests.
const ROOMS: [&str; 3] = ["bucket.", "sink.", "worker."];

/// Reads the names of all failpoints of an export from a source tree, so that a new one can't be forgotten. Leaves out
/// the destination that isn't in use, `crates/cdc-destination/src/bucket` or `crates/cdc-destination/src/folder`.
pub(crate) fn failpoints(tree: &Path, unused: &Path) -> Result<BTreeSet<String>> {
    let unused = tree.join(unused);
    let mut names = BTreeSet::new();
    let mut folders = vec![tree.join("src"), tree.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.with_extension("") == unused {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)?;
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                names.extend(named(&code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    names.retain(|name| ROOMS.iter().any(|room| name.starts_with(room)));
    ensure!(!names.is_empty(), "no failpoint was found in {}", tree.display());
    Ok(names)
}

fn named(code: &str) -> Vec<String> {
    let calls = code.split("failpoint!(").skip(1);
    calls.filter_map(|call| Some(call.trim_start().strip_prefix('"')?.split_once('"')?.0.to_owned())).collect()
}
