//! The crate as a package: what is in it, and what its program says of itself.

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
