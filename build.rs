//! Tells the binary which commit it is of: `cdc-export --version` prints `CDC_EXPORT_VERSION`, as `0.1.0 (828c81a 2026-11-22)`.
//!
//! The commit is what the variable `CDC_EXPORT_COMMIT` says, else that of the clone, else the one that `cargo package` noted down. A
//! debug build has only the variable's: by git it would be compiled anew after each commit.
#![expect(clippy::disallowed_methods, reason = "cargo speaks to a build script by its environment")]

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CDC_EXPORT_COMMIT");
    let named = env::var("CDC_EXPORT_COMMIT").map(|commit| commit.trim().to_owned()).ok();
    let named = named.filter(|commit| !commit.is_empty());
    let is_debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let commit = named.or_else(|| if is_debug { None } else { of_clone().or_else(of_package) });
    let version = env!("CARGO_PKG_VERSION");
    match commit {
        Some(commit) => println!("cargo::rustc-env=CDC_EXPORT_VERSION={version} ({commit})"),
        None => println!("cargo::rustc-env=CDC_EXPORT_VERSION={version}"),
    }
}

/// Commit and date by git. `None` where this folder isn't the top of a clone: a package that was unpacked somewhere in another
/// project's clone is not of that one's commit.
fn of_clone() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // The second changes with each commit. Cargo takes a file that isn't there for a changed one.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["log", "-1", "--no-show-signature", "--abbrev=7", "--date=format-local:%F", "--format=%h %cd"])
}

/// What git prints, without the end of the line; `None` where it fails, or isn't there.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).env("TZ", "UTC").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

/// The commit in the file that `cargo package` adds.
fn of_package() -> Option<String> {
    let noted = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let sha1 = noted.split_once("\"sha1\"")?.1.split('"').nth(1)?;
    sha1.get(..7).map(str::to_owned)
}
