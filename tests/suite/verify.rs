//! `verify`: what it finds in a folder that is whole, and after one thing in it was changed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cdc_manifest::{Chained, Manifest, ManifestColumn, ManifestFile, ManifestJob, ManifestSource, SigningKey, VERSION};
use proptest::prelude::*;
use proptest::sample::Index;
use ring::digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{lent_user, option_env, reachable_folder};

/// An export with its files, as the service writes them.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) manifest: Manifest,
    /// Name and content.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Export {
    pub(crate) fn name(&self) -> String {
        Manifest::name_in_folder(&self.files[0].0.replace(".part-00001", ""))
    }

    #[cfg(feature = "buckets")]
    pub(crate) fn key(&self) -> String {
        let Chained { dataset, consumer, .. } = &self.manifest.export;
        Manifest::key(dataset, &consumer.parse().unwrap(), self.manifest.number)
    }

    /// Returns the same export with the URLs of a place.
    #[cfg(feature = "buckets")]
    pub(crate) fn at_url(mut self, place: &str) -> Export {
        let Chained { dataset, consumer, .. } = &self.manifest.export;
        for (entry, (name, _)) in self.manifest.entries.iter_mut().zip(&self.files) {
            entry.url = format!("{}/{dataset}/{consumer}/{name}", place.trim_end_matches('/'));
        }
        self
    }

    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join(self.name()), self.manifest.text()).unwrap();
        for (name, content) in &self.files {
            std::fs::write(folder.join(name), content).unwrap();
        }
    }

    /// Returns the beginning of a line about this export's file or manifest.
    fn line(&self, name: &str, fault: &str) -> String {
        let Chained { dataset, consumer, .. } = &self.manifest.export;
        format!("{dataset}/{consumer} {} {name}: {fault}", self.manifest.number)
    }
}

/// The next export of a lane: a full one or a delta, with so many rows in each of its files, which lie at `at` from the
/// manifest.
pub(crate) fn next(consumer: &str, before: Option<&Export>, full: bool, rows: &[u64], at: &str) -> Export {
    let number = before.map_or(1, |before| before.manifest.number + 1);
    let compression = ["none", "gzip", "zstd"][number as usize % 3];
    let extension = ["", ".gz", ".zst"][number as usize % 3];
    let kind = if full { "full" } else { "delta" };
    let (mut files, mut told) = (Vec::new(), Vec::new());
    for (part, rows) in rows.iter().enumerate() {
        let text: String = (0..*rows).map(|row| format!("{row},\"{consumer}\n{number}\"\n")).collect();
        let text = format!("id,name\n{text}");
        let content = match compression {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text.as_bytes()).unwrap();
                encoder.finish().unwrap()
            }
            "zstd" => zstd::encode_all(text.as_bytes(), 1).unwrap(),
            _ => text.into_bytes(),
        };
        let part = if rows_are_split(number) { format!(".part-{:05}", part + 1) } else { String::new() };
        let name = format!("{kind}_orders_{consumer}_20261120T1014{number:02}Z{part}.csv{extension}");
        told.push(ManifestFile {
            sha256: hex::encode(digest::digest(&digest::SHA256, &content)),
            bytes: content.len().to_string(),
            rows: rows.to_string(),
            path: Some(format!("{at}{name}")),
        });
        files.push((name, content));
        if !rows_are_split(number) {
            break;
        }
    }
    let column = |name: &str, of: &str| ManifestColumn {
        name: name.to_owned(),
        type_name: of.to_owned(),
        base: None,
        mask: None,
        meta: None,
    };
    let export = Chained {
        version: VERSION.to_owned(),
        job: ManifestJob::One(uuid::Uuid::now_v7().to_string()),
        source: ManifestSource { cluster: "00000000000000ff".to_owned(), database: "16384".to_owned() },
        consumer: consumer.to_owned(),
        dataset: "orders".to_owned(),
        table: Some("sales.orders".to_owned()),
        export_type: kind.to_owned(),
        key: vec!["id".to_owned()],
        columns: vec![column("id", "bigint"), column("name", "character varying(20)")],
        format: "csv".to_owned(),
        compression: compression.to_owned(),
        snapshot: Some("1041:1050:1043".to_owned()),
        continuity: None,
        watermark_from: before.map(|_| "2026-11-20T10:14:58.402113Z".to_owned()),
        watermark_to: Some("2026-11-20T10:14:58.402113Z".to_owned()),
        rows: rows.iter().take(files.len()).sum::<u64>().to_string(),
        files: told,
        previous: before.map(|before| before.manifest.digest.clone()),
        order: None,
    };
    let urls = files.iter().map(|(name, _)| format!("file:///srv/exports/{name}")).collect();
    Export { manifest: Manifest::new(number, export, urls), files }
}

fn rows_are_split(number: u64) -> bool {
    number.is_multiple_of(2)
}

pub(crate) fn lane(consumer: &str, exports: &[(bool, Vec<u64>)], at: &str) -> Vec<Export> {
    let mut lane: Vec<Export> = Vec::new();
    for (full, rows) in exports {
        lane.push(next(consumer, lane.last(), *full, rows, at));
    }
    lane
}

/// Exit code, and the lines on standard output; standard error has none.
fn verify(place: &Path, options: &[&str]) -> (i32, Vec<String>) {
    let (code, lines, said) = run(&[&["verify", place.to_str().unwrap()], options].concat(), place);
    assert_eq!(said, "");
    (code, lines)
}

fn run(arguments: &[&str], folder: &Path) -> (i32, Vec<String>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-export"));
    command.args(arguments).current_dir(folder).env_clear();
    ended(&mut command)
}

fn ended(command: &mut Command) -> (i32, Vec<String>, String) {
    command.envs(option_env("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
    let Output { status, stdout, stderr } = command.output().unwrap();
    let lines = String::from_utf8(stdout).unwrap().lines().map(str::to_owned).collect();
    (status.code().unwrap(), lines, String::from_utf8(stderr).unwrap())
}

fn folder_of(exports: &[Export]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    exports.iter().for_each(|export| export.write(folder.path()));
    folder
}

/// The members of a manifest that have a value of their own.
fn leaves(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::Object(members) => {
            members.iter().flat_map(|(name, value)| leaves(value, &format!("{at}/{name}"))).collect()
        }
        Value::Array(members) => {
            members.iter().enumerate().flat_map(|(n, value)| leaves(value, &format!("{at}/{n}"))).collect()
        }
        _ => vec![at.to_owned()],
    }
}

fn exports() -> impl Strategy<Value = Vec<(bool, Vec<u64>)>> {
    let export = (prop::bool::weighted(0.3), prop::collection::vec(0..20_u64, 1..4));
    prop::collection::vec(export, 3..8).prop_map(|mut exports| {
        exports[0].0 = true;
        exports
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_change_is_one_fault(plans in prop::collection::vec(exports(), 1..4), which: Index, at: Index, part: Index, what in 0..9) {
        let mut lanes: Vec<Vec<Export>> = plans.iter().zip(["a", "b:c", "d"]).map(|(plan, name)| lane(name, plan, "")).collect();
        let all = lanes.concat();
        let folder = folder_of(&all);
        let files: usize = all.iter().map(|export| export.files.len()).sum();
        let bytes: usize = all.iter().flat_map(|export| &export.files).map(|(_, content)| content.len()).sum();
        let s = |count: usize| if count == 1 { "" } else { "s" };
        let (code, lines) = verify(folder.path(), &[]);
        let sum = format!("whole: {} lane{}, {} exports, {files} file{}, {bytes} bytes; 0 older files gone", lanes.len(), s(lanes.len()), all.len(), s(files));
        prop_assert_eq!((code, lines), (0, vec![sum]));

        let lane = lanes.swap_remove(which.index(lanes.len()));
        let base = lane.iter().rposition(|export| export.manifest.export.export_type == "full").unwrap();
        let middle = 1 + at.index(lane.len() - 2);
        let (export, needed) = (&lane[middle], &lane[base + at.index(lane.len() - base)]);
        let path = |name: &str| folder.path().join(name);
        let any = |export: &Export| export.files[part.index(export.files.len())].clone();
        let mut expected = Vec::new();
        match what {
            0 => {
                let (name, mut content) = any(export);
                let at = at.index(content.len());
                content[at] ^= 1;
                std::fs::write(path(&name), content).unwrap();
                expected.push(export.line(&name, "changed (another SHA-256)"));
            }
            1 => {
                let (name, _) = any(needed);
                std::fs::remove_file(path(&name)).unwrap();
                expected.push(needed.line(&name, "missing"));
            }
            2 => {
                let (name, content) = any(export);
                std::fs::write(path(&name), &content[1..]).unwrap();
                expected.push(export.line(&name, &format!("changed ({} bytes, not {})", content.len() - 1, content.len())));
            }
            3 => {
                std::fs::remove_file(path(&export.name())).unwrap();
                let after = &lane[middle + 1];
                expected.push(after.line(&after.name(), &format!("gap after {middle}")));
            }
            4 => {
                let other = &lane[middle - 1];
                std::fs::write(path(&export.name()), other.manifest.text()).unwrap();
                std::fs::write(path(&other.name()), export.manifest.text()).unwrap();
                expected.push(other.line(&export.name(), "changed (it is the manifest of another name)"));
                expected.push(export.line(&other.name(), "changed (it is the manifest of another name)"));
            }
            5 => {
                let mut value = serde_json::to_value(&export.manifest).unwrap();
                let mut leaves = leaves(&value, "");
                // The digest leaves out the places of the files. A wrong number shows only beside other manifests.
                leaves.retain(|at| !at.ends_with("/url") && !at.ends_with("/path") && !at.starts_with("/author"));
                leaves.retain(|at| at != "/export/version" && at != "/number");
                let member = value.pointer_mut(&leaves[part.index(leaves.len())]).unwrap();
                *member = match member {
                    Value::Number(_) => 12345.into(),
                    Value::Bool(_) => false.into(),
                    _ => "12345".into(),
                };
                std::fs::write(path(&export.name()), value.to_string()).unwrap();
                let (_, lines) = verify(folder.path(), &[]);
                prop_assert!(lines[0].contains(&format!(" {}: changed (", export.name())), "{:?}", lines);
                prop_assert_eq!(lines.len(), 2);
                return Ok(());
            }
            6 => {
                let mut other = next("b:c", Some(&lane[middle - 1]), false, &[3], "");
                let Export { manifest, files } = &mut other;
                files[0].0 = files[0].0.replace("b:c", "other").replace(".part-00001", "");
                let chained = Chained { consumer: export.manifest.export.consumer.clone(), ..manifest.export.clone() };
                *manifest = Manifest::new(manifest.number, chained, vec![format!("file:///srv/{}", files[0].0)]);
                manifest.export.files[0].path = Some(files[0].0.clone());
                other.write(folder.path());
                for both in [export, &other] {
                    expected.push(both.line(&both.name(), &format!("forked at {}", middle + 1)));
                }
            }
            7 => {
                let mut changed = export.manifest.clone();
                changed.number = 99;
                std::fs::write(path(&export.name()), changed.text()).unwrap();
                let after = &lane[middle + 1];
                expected.push(after.line(&after.name(), "changed (its number is not above 99, which it follows)"));
            }
            // Retention.
            _ => {
                let older: Vec<_> = lane[..base].iter().flat_map(|export| &export.files).collect();
                older.iter().for_each(|(name, _)| std::fs::remove_file(path(name)).unwrap());
                let (code, lines) = verify(folder.path(), &[]);
                prop_assert_eq!(code, 0);
                let end = format!("; {} older file{} gone", older.len(), s(older.len()));
                prop_assert!(lines[0].starts_with("whole: ") && lines[0].ends_with(&end), "{:?}", lines);
                return Ok(());
            }
        }
        let (code, mut lines) = verify(folder.path(), &[]);
        let sum = lines.pop().unwrap();
        prop_assert!(sum.starts_with(&format!("{} fault{}: ", expected.len(), s(expected.len()))), "{}", sum);
        prop_assert_eq!((code, BTreeSet::from_iter(lines)), (1, BTreeSet::from_iter(expected)));
    }
}

#[test]
fn what_leads_out_of_the_place_is_not_followed() {
    let mut lane = lane("a", &[(true, vec![1]), (false, vec![1, 2])], "");
    lane[1].manifest.export.files[0].path = Some("../../etc/passwd".to_owned());
    let folder = folder_of(&lane);
    let link = folder.path().join(&lane[1].files[1].0);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    std::fs::write(folder.path().join("broken\u{1b}.manifest.json"), "{}").unwrap();
    let (code, mut lines) = verify(folder.path(), &[]);
    let sum = lines.pop().unwrap();
    lines.sort();
    assert!(code == 1 && sum.starts_with("4 faults: 1 lane, 2 exports, 1 file, "), "{sum}");
    assert_eq!(lines[0], "- - broken\\u{1b}.manifest.json: unreadable (missing field `entries` at line 1 column 2)");
    assert_eq!(lines[1], lane[1].line("../../etc/passwd", "outside"));
    let of_link = lane[1].line(&lane[1].files[1].0, "missing (there is a link or a folder)");
    let of_name = lane[1].line(&lane[1].name(), "changed (it is the manifest of another name)");
    assert_eq!(lines[2..], [of_name, of_link]);
}

/// Marks that a terminal doesn't show, and obeys: they turn the direction of what follows, or hide it.
#[test]
fn names_are_printed_without_what_a_terminal_obeys() {
    let mut export = next("a", None, true, &[1], "");
    export.manifest.export.consumer = "a\u{202e}b\u{200b}".to_owned();
    export.manifest.export.dataset = "o\u{1b}[2J".to_owned();
    export.manifest.export.files[0].path = Some("x\u{2066}.csv".to_owned());
    export.manifest = Manifest::new(1, export.manifest.export, vec!["file:///srv/x%E2%81%A6.csv".to_owned()]);
    let folder = folder_of(&[]);
    std::fs::write(folder.path().join("n\u{202e}\u{feff}.manifest.json"), export.manifest.text()).unwrap();
    std::fs::write(folder.path().join("h\u{e9}\u{5d0}\u{2028}.manifest.json"), "{}").unwrap();
    let (code, lines) = verify(folder.path(), &[]);
    let export = r"o\u{1b}[2J/a\u{202e}b\u{200b} 1";
    let expected = [
        format!(r"{export} x\u{{2066}}.csv: missing"),
        format!(r"{export} n\u{{202e}}\u{{feff}}.manifest.json: changed (it is the manifest of another name)"),
        "- - h\u{e9}\u{5d0}\\u{2028}.manifest.json: unreadable (missing field `entries` at line 1 column 2)".to_owned(),
    ];
    assert_eq!((code, BTreeSet::from_iter(lines[..3].to_vec())), (1, BTreeSet::from(expected)));
    let (code, _, said) = run(&["verify", "no\u{202e}ne"], folder.path());
    assert!(code == 2 && said.starts_with(r"cdc-export: no\u{202e}ne: "), "{said}");
}

/// The length alone shows that a text is too long, so nobody has to read it.
#[test]
fn what_is_too_long_for_a_manifest_is_not_read() {
    let folder = folder_of(&lane("a", &[(true, vec![1])], ""));
    let large = std::fs::File::create(folder.path().join("large.manifest.json")).unwrap();
    large.set_len(1 << 30).unwrap();
    let (code, lines) = verify(folder.path(), &[]);
    let told = "unreadable (it has 1073741824 bytes, and no manifest has more than 33554432)";
    assert_eq!((code, &*lines[0]), (1, &*format!("- - large.manifest.json: {told}")));
}

/// `verify` by a user who isn't root, where root runs the tests: root may read everything.
fn run_as_user(folder: &Path) -> (i32, Vec<String>, String) {
    let program = reachable_folder();
    let path = program.path().join("cdc-export");
    // `cp` copies the program. Processes of other tests would inherit a file that this process has open for writing,
    // and such a file can't be run.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_cdc-export")).arg(&path).status().unwrap().success());
    let mut command = Command::new(path);
    command.args(["verify", folder.to_str().unwrap()]).current_dir("/").env_clear();
    if nix::unistd::geteuid().is_root() {
        let user = lent_user();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    ended(&mut command)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_place_that_may_not_be_read_is_told_from_one_that_is_not_whole() {
    let user = if nix::unistd::geteuid().is_root() { lent_user().uid } else { nix::unistd::geteuid() };
    let lane = lane("a", &[(true, vec![1]), (false, vec![1, 2])], "");
    let folder = folder_of(&lane);
    let at = |name: &str| folder.path().join(name);
    set_mode(folder.path(), 0o755);
    assert_eq!(run_as_user(folder.path()).0, 0);

    // A file of another user's.
    let (name, _) = &lane[1].files[1];
    let owner = std::fs::metadata(at(name)).unwrap().uid();
    set_mode(&at(name), 0o200);
    let (code, lines, said) = run_as_user(folder.path());
    let why = format!("unreadable (user {user} may not read it: its owner is user {owner}, and its mode 0200)");
    assert_eq!((code, &*lines[0], &*said), (1, &*lane[1].line(name, &why), ""));

    // One of the manifests, and then all of them.
    set_mode(&at(&lane[1].name()), 0o200);
    let (code, lines, _) = run_as_user(folder.path());
    assert!(code == 1, "{lines:?}");
    assert!(lines[0].starts_with(&format!("- - {}: unreadable (user {user} may not ", lane[1].name())), "{lines:?}");
    set_mode(&at(&lane[0].name()), 0o200);
    let (code, lines, said) = run_as_user(folder.path());
    let why = format!("no manifest can be read (2 tried): {}: user {user} may not read it: ", lane[0].name());
    let other = why.replace(&lane[0].name(), &lane[1].name());
    assert!(code == 2 && lines.is_empty() && (said.contains(&why) || said.contains(&other)), "{code} {lines:?} {said}");

    // The whole folder, which may be listed, or may not.
    for (mode, why) in [(0o744, "it can be listed, but what is in it can't be opened"), (0o711, "Permission denied")] {
        set_mode(folder.path(), if nix::unistd::geteuid().is_root() { mode } else { (mode & 0o7) << 6 });
        let (code, lines, said) = run_as_user(folder.path());
        assert!(code == 2 && lines.is_empty() && said.contains(why), "{code} {lines:?} {said}");
        assert!(said.starts_with(&format!("cdc-export: {}: ", folder.path().display())), "{said}");
    }
    set_mode(folder.path(), 0o755);
}

/// The pipe holds fewer lines than there are faults, so `verify` has not read all manifests when it is stopped.
#[test]
fn a_folder_that_is_removed_meanwhile_is_no_folder_of_missing_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exports");
    std::fs::create_dir(&path).unwrap();
    for n in 0..3000 {
        std::fs::write(path.join(format!("{n:0200}.manifest.json")), "{}").unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-export"));
    command.args(["verify", path.to_str().unwrap()]).current_dir("/").env_clear();
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains(": unreadable ("));
    // `verify` skips a manifest that is removed while the folder is still there.
    let pid = nix::unistd::Pid::from_raw(process.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let ended = process.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(said, format!("cdc-export: {}: it was removed while it was read\n", path.display()));
    assert!(ended.status.code() == Some(2) && rest.len() < 2999, "{}", rest.len());
    assert!(rest.iter().all(|line| line.contains(": unreadable (")), "{:?}", rest.last());
}

/// A bucket whose policy grants the list alone, or all but one object.
#[cfg(feature = "buckets")]
#[tokio::test]
async fn a_bucket_that_may_be_listed_and_not_read_is_told() {
    use axum::http::{StatusCode, Uri};

    let lane = [lane("a", &[(true, vec![1])], "../").remove(0).at_url("s3://files")];
    let (key, text) = (lane[0].key(), lane[0].manifest.text());
    for open in [false, true] {
        let (key, text) = (key.clone(), text.clone());
        let listed = format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>{key}</Key><Size>{}</Size>\
             <LastModified>2026-11-20T10:14:58.000Z</LastModified></Contents></ListBucketResult>",
            text.len()
        );
        let answer = move |uri: Uri| async move {
            let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>".to_owned();
            match uri.path() {
                "/files" | "/files/" => {
                    (StatusCode::OK, [("ETag", "x"), ("Last-Modified", "Fri, 20 Nov 2026 10:14:58 GMT")], listed)
                }
                path if open && path.ends_with(".json") => {
                    (StatusCode::OK, [("ETag", "x"), ("Last-Modified", "Fri, 20 Nov 2026 10:14:58 GMT")], text)
                }
                _ => {
                    (StatusCode::FORBIDDEN, [("ETag", "x"), ("Last-Modified", "Fri, 20 Nov 2026 10:14:58 GMT")], denied)
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        let settings = [
            ("AWS_ENDPOINT_URL", &*endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let (code, said, error) = crate::command::run(&["verify", "s3://files"], &settings).await;
        server.abort();
        if open {
            let line =
                format!("orders/a 1 orders/a/{}: unreadable (AccessDenied: Access Denied)\n", lane[0].files[0].0);
            assert!(code == 1 && said.starts_with(&line) && error.is_empty(), "{code} {said} {error}");
        } else {
            let why = format!("no manifest can be read (1 tried): {}: AccessDenied: Access Denied\n", lane[0].key());
            assert_eq!((code, said, error), (2, String::new(), format!("cdc-export: s3://files/: {why}")));
        }
    }
}

#[test]
fn a_place_without_manifests_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("full_a_20261120T101401Z.csv"), "id\n").unwrap();
    assert_eq!(verify(folder.path(), &[]), (1, vec!["no manifests".to_owned()]));
    assert_eq!(run(&["verify", &format!("file://{}", folder.path().display())], folder.path()).0, 1);
    let no_bucket = if cfg!(feature = "buckets") {
        "PLACE: none of s3://BUCKET/PREFIX"
    } else {
        "PLACE: this build writes to folders only"
    };
    for (arguments, said) in [
        (&["verify"][..], "<PLACE>"),
        (&["verify", "./none"], "./none: No such file or directory"),
        (&["verify", "full_a_20261120T101401Z.csv"], "Not a directory"),
        (&["verify", "ftp://files"], no_bucket),
        (&["verify", ".", "--public-key", "aaaa"], "32 bytes"),
        (&["verify", ".", "--public-key", &"00".repeat(32)], "small order"),
    ] {
        let (code, lines, error) = run(arguments, folder.path());
        assert!(code == 2 && lines.is_empty() && error.contains(said), "{code} {lines:?} {error}");
    }
}

/// A person who can write to a place can't choose what `verify` reads there, if the keys are known.
#[test]
fn files_of_a_manifest_without_the_keys_signature_are_not_opened() {
    let key = |seed: &str| SigningKey::read(&seed.repeat(32)).unwrap();
    let mut lane = lane("a", &[(true, vec![1]), (false, vec![1]), (false, vec![1]), (false, vec![1])], "");
    key("07").sign(&mut lane[0].manifest);
    key("08").sign(&mut lane[1].manifest);
    key("09").sign(&mut lane[2].manifest);
    let folder = folder_of(&lane);
    let (old, new) = (key("07").public_key(), key("08").public_key());
    // All files are damaged, but only those of signed manifests are looked at.
    for (name, _) in lane.iter().flat_map(|export| &export.files) {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let (code, mut lines) = verify(folder.path(), &["--public-key", &old, "--public-key", &new]);
    lines.pop();
    let damaged = |export: &Export| {
        let (name, content) = &export.files[0];
        export.line(name, &format!("changed (0 bytes, not {})", content.len()))
    };
    let expected = [
        damaged(&lane[0]),
        damaged(&lane[1]),
        lane[2].line(&lane[2].name(), "changed (its signature is not by this key)"),
        lane[3].line(&lane[3].name(), "unsigned"),
    ];
    assert_eq!((code, BTreeSet::from_iter(lines)), (1, BTreeSet::from(expected)));
}

/// A file of 16 MB that a manifest named 10,000 times took hours.
#[test]
fn a_file_is_read_once_however_often_it_is_named() {
    let export = next("a", None, true, &[3], "");
    let (name, content) = export.files[0].clone();
    // In one manifest.
    let mut several = export.clone();
    several.manifest.export.files = vec![several.manifest.export.files[0].clone(); 100];
    let urls = vec![several.manifest.entries[0].url.clone(); 100];
    several.manifest = Manifest::new(1, several.manifest.export, urls);
    let (code, lines) = verify(folder_of(&[several.clone()]).path(), &[]);
    let fault = several.line(&several.name(), &format!("changed (it names {name} more than once)"));
    assert_eq!((code, lines.len()), (1, 100));
    assert!(lines[..99].iter().all(|line| *line == fault), "{lines:?}");
    let sum = format!("99 faults: 1 lane, 1 export, 1 file, {} bytes; 0 older files gone", content.len());
    assert_eq!(lines[99], sum);

    // In several manifests, and then in one that says something else of it.
    let folder = folder_of(std::slice::from_ref(&export));
    let copies = |rows: &str, numbers: std::ops::Range<u64>| {
        for number in numbers {
            let mut chained = export.manifest.export.clone();
            (chained.job, chained.files[0].rows) = (ManifestJob::One(number.to_string()), rows.to_owned());
            chained.previous = Some(export.manifest.digest.clone());
            (chained.export_type, chained.watermark_from) = ("delta".to_owned(), chained.watermark_to.clone());
            let url = export.manifest.entries[0].url.clone();
            let name = format!("full_orders_a_20261120T101401Z{number}.manifest.json");
            std::fs::write(folder.path().join(name), Manifest::new(number, chained, vec![url]).text()).unwrap();
        }
    };
    let of_files = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| !line.contains("another name") && !line.contains("forked at")).collect()
    };
    copies("3", 2..50);
    let lines = of_files(verify(folder.path(), &[]).1);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&format!(" 49 exports, 1 file, {} bytes;", content.len())), "{lines:?}");
    copies("4", 50..51);
    let mut lines = of_files(verify(folder.path(), &[]).1);
    // Whichever manifest is read first is believed.
    assert!(lines.pop().unwrap().contains(" 1 file, ") && !lines.is_empty(), "{lines:?}");
    let is_told = |line: &String| line.ends_with("changed (two manifests name it with different content)");
    assert!(lines.iter().all(is_told), "{lines:?}");
}

/// Loaders read the `url` of an entry, and `verify` the file at the `path`.
#[test]
fn url_of_another_file_is_outside() {
    let lane = lane("a", &[(true, vec![1]), (false, vec![1, 2])], "");
    let (name, _) = &lane[1].files[0];
    for url in [
        format!("https://evil.example/{name}"),
        format!("file://evil.example/srv/{name}"),
        format!("s3://evil/{name}"),
        format!("file:///srv/exports/{}", lane[1].files[1].0),
        format!("file:///srv/x{name}"),
        String::new(),
    ] {
        let mut other = lane.clone();
        other[1].manifest.entries[0].url.clone_from(&url);
        let (code, lines) = verify(folder_of(&other).path(), &[]);
        assert_eq!((code, &*lines[0]), (1, &*lane[1].line(name, "outside (its url leads to another file)")), "{url}");
        assert_eq!(lines.len(), 2, "{url}");
    }
}

/// A reader that stops before the end hasn't read that everything is right.
#[test]
fn a_closed_pipe_is_no_success() {
    let folder = folder_of(&lane("a", &[(true, vec![1])], ""));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-export"));
    let output = command.args(["verify", "."]).current_dir(folder.path()).env_clear().stdout(writer).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("has closed it before the end"), "{said}");
}
