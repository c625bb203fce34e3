//! Tells the binary which commit it is of: `cdc-export --version` prints `CDC_EXPORT_VERSION`, as `0.1.0 (828c81a
//! 2026-11-22)`. And takes the files of Swagger UI for `http::docs` out of the archive that a crate ships.
//!
//! The commit is what the variable `CDC_EXPORT_COMMIT` says, else that of the clone, else the one that `cargo package`
//! noted down. A debug build has only the variable's: by git it would be compiled anew after each commit.
#![expect(clippy::disallowed_methods, reason = "cargo speaks to a build script by its environment")]

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

/// The page whose words errors name. The binary serves it.
const SYMPTOMS: &str = "docs/SYMPTOMS.md";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CDC_EXPORT_COMMIT");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    for name in ["swagger-ui-bundle.js", "swagger-ui.css"] {
        let file = deflated(SWAGGER_UI_VENDORED, &format!("/dist/{name}"));
        fs::write(Path::new(&out).join(format!("{name}.deflated")), file)
            .expect("the folder is for this script's files");
    }
    println!("cargo::rerun-if-changed={SYMPTOMS}");
    let text = fs::read_to_string(SYMPTOMS).expect("the package has the page");
    fs::write(Path::new(&out).join("symptoms.html"), symptoms(&text)).expect("the folder is for this script's files");
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

/// Returns the page of symptoms as HTML, in which each word of a table's first column can be linked to. Of a link to
/// another page of the docs only the text is left, because the binary has no other page.
fn symptoms(text: &str) -> String {
    let mut cell = 0;
    let events = Parser::new_ext(text, Options::ENABLE_TABLES).filter_map(|event| {
        match &event {
            Event::Start(Tag::Link { .. }) | Event::End(TagEnd::Link) => return None,
            Event::Start(Tag::TableRow) | Event::End(TagEnd::Table) => cell = 0,
            Event::Start(Tag::TableCell) => cell += 1,
            Event::Code(word) if cell == 1 => {
                return Some(Event::InlineHtml(format!("<code id=\"{word}\">{word}</code>").into()));
            }
            _ => {}
        }
        Some(event)
    });
    let mut body = String::new();
    html::push_html(&mut body, events);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Symptoms · cdc-export</title>\n<link rel=\"icon\" href=\"/page/icon.svg\" type=\"image/svg+xml\">\n\
         <link rel=\"stylesheet\" href=\"/page/frame.css\">\n<link rel=\"stylesheet\" href=\"/page/symptoms.css\">\n\
         </head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Commit and date by git. `None` where this folder isn't the top of a clone: a package that was unpacked somewhere in
/// another project's clone is not of that one's commit.
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

/// Returns the output of git without the end of the line. Returns `None` if git fails or isn't installed.
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

/// The deflated bytes of the file in a ZIP archive whose path ends so (APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16).
fn deflated<'z>(archive: &'z [u8], path_end: &str) -> &'z [u8] {
    let number = |at: usize, bytes: usize| -> usize {
        archive[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let end = archive.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").expect("an archive ends with its directory");
    let mut entry = number(end + 16, 4);
    loop {
        assert_eq!(archive[entry..entry + 4], *b"PK\x01\x02", "{path_end} is not in the archive");
        let [name, extra, comment] = [28, 30, 32].map(|at| number(entry + at, 2));
        if archive[entry + 46..entry + 46 + name].ends_with(path_end.as_bytes()) {
            let local = number(entry + 42, 4);
            let data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
            return &archive[data..data + number(entry + 20, 4)];
        }
        entry += 46 + name + extra + comment;
    }
}
