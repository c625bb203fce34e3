//! The crate as a package: what is in it, and what its program says of itself.

use std::path::Path;

use crate::source_files::code_below;

/// The paths that `Cargo.toml` puts into the package.
fn included() -> Vec<String> {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let list = manifest.split_once("\ninclude = [").unwrap().1.split(']').next().unwrap();
    list.split('"').skip(1).step_by(2).map(|path| path.trim_start_matches('/').to_owned()).collect()
}

#[test]
fn the_package_has_every_file_that_is_compiled_in() {
    let included = included();
    let mut seen = 0;
    for (name, code) in code_below("src") {
        for rest in ["include_str!(\"", "include_bytes!(\""].iter().flat_map(|call| code.split(call).skip(1)) {
            let named = Path::new(&name).with_file_name("").join(rest.split('"').next().unwrap());
            let mut path = Vec::new();
            for part in named.iter().map(|part| part.to_str().unwrap()) {
                if part == ".." { path.truncate(path.len() - 1) } else { path.push(part) }
            }
            let path = path.join("/");
            let is_in = |entry: &String| path == *entry || path.starts_with(&format!("{entry}/"));
            assert!(included.iter().any(is_in), "{} has {path}, which the package lacks", name);
            seen += 1;
        }
    }
    assert!(seen > 2 && ["build.rs", "migrations", "src"].iter().all(|path| included.contains(&(*path).to_owned())));
}

#[test]
fn the_program_says_its_version() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cdc-export")).arg("--version").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let said =
        said.trim_end().strip_prefix(concat!("cdc-export ", env!("CARGO_PKG_VERSION"))).expect("name and version");
    // The commit, where the build was told one.
    let commit = said.strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
    let is_hash = |word: &str| word.len() >= 7 && word.bytes().all(|digit| digit.is_ascii_hexdigit());
    assert!(said.is_empty() || commit.and_then(|commit| commit.split(' ').next()).is_some_and(is_hash), "{said}");
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_cdc-export"));
    assert!(program().arg("man").arg(&pages).status().unwrap().success());
    let help = String::from_utf8(program().arg("--help").output().unwrap().stdout).unwrap();
    let listed = help.split_once("\nCommands:\n").unwrap().1.split("\n\n").next().unwrap();
    for name in listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()) {
        if !["help", ""].contains(&name) {
            let page = std::fs::read_to_string(pages.join(format!("cdc-export-{name}.1"))).expect(name);
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
    }
    // A file is in the folder's way.
    let output = program().arg("man").arg(pages.join("cdc-export.1")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cdc-export.1"));
}
