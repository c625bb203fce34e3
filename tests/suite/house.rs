//! The walls of the house: which room may use which, and what only one room may know. `docs/ARCHITECTURE.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const NOUNS: [&str; 7] = ["database", "dataset", "file", "job", "key", "row", "watermark"];

/// What a room may use, besides itself.
fn allowed(room: &str) -> BTreeSet<&'static str> {
    let own: &[&str] = match room {
        "http" => &["service"],
        "service" => &["store", "source", "sink"],
        "worker" => &["pipeline", "store", "source", "sink"],
        "pipeline" => &["source", "encode", "sink"],
        "store" | "source" => &["connection"],
        // How to connect to the private server.
        "postgres" => &["connection", "embedded"],
        "encode" | "sink" | "database" | "dataset" | "file" | "job" | "key" | "row" | "watermark" => &[],
        // Their settings.
        "config" => {
            let settings = ["embedded", "http", "postgres", "source", "telemetry", "worker"];
            return settings.into_iter().chain(NOUNS).collect();
        }
        "embedded" => return ["failpoint", "telemetry"].into(),
        "connection" | "telemetry" | "failpoint" => return BTreeSet::new(),
        other => panic!("src/{other} is a new room: say here and in docs/ARCHITECTURE.md whom it may use"),
    };
    let mut rooms: BTreeSet<_> = own.iter().copied().chain(NOUNS).collect();
    if !NOUNS.contains(&room) {
        rooms.insert("failpoint");
        if room != "encode" {
            rooms.insert("telemetry");
        }
    }
    rooms
}

/// The code of each room, by file, without comments and tests.
fn rooms() -> BTreeMap<String, Vec<(String, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms = BTreeMap::<_, Vec<_>>::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
            let room = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
            let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            rooms.entry(room).or_default().push((name, code.join("\n")));
        }
    }
    rooms
}

/// The rooms that code names as `crate::room` or `crate::{room, …}`.
fn used(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        // The names at the group's first level.
        let (mut depth, mut name) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    rooms.insert(word(&name));
                    name.clear();
                }
                c if depth == 0 => name.push(c),
                _ => {}
            }
        }
        rooms.insert(word(&name));
    }
    rooms.remove("");
    rooms
}

#[test]
fn a_room_uses_only_whom_it_may() {
    // The commands wire the rooms, and are no room of the library themselves.
    for (room, files) in rooms().iter().filter(|(room, _)| !matches!(room.as_str(), "main" | "command" | "lib")) {
        let allowed = allowed(room);
        for (file, code) in files {
            for other in used(code).iter().filter(|other| *other != room) {
                assert!(allowed.contains(other.as_str()), "src/{file} uses {other}, which {room} may not");
            }
        }
    }
}

#[test]
fn the_reader_of_uses_sees_every_form() {
    let code = "use crate::store::{self, jobs};\nuse crate::{sink, worker::{a, b}, http};\nfn f() { crate::row::x() }";
    assert_eq!(used(code).into_iter().collect::<Vec<_>>(), ["http", "row", "sink", "store", "worker"]);
}

#[test]
fn what_only_some_rooms_know() {
    let rules: &[(&str, &[&str])] = &[
        ("sqlx", &["store", "source", "postgres", "connection"]),
        ("StatusCode", &["http"]),
        ("std::env", &["config"]),
        ("rustix::fs", &["command", "config", "embedded", "sink"]),
        ("std::fs", &["command", "config", "embedded", "sink", "service"]),
        ("anyhow", &["main", "command"]),
        ("println!", &["main", "command"]),
        ("prometheus::", &["telemetry"]),
    ];
    for (room, files) in rooms() {
        for (file, code) in files {
            for (word, knowing) in rules {
                assert!(!code.contains(word) || knowing.contains(&room.as_str()), "src/{file} names {word}");
            }
            assert!(room != "encode" || !code.contains(".await"), "src/{file} awaits");
        }
    }
}

#[test]
fn every_statement_is_headed_by_its_name() {
    for (room, files) in rooms().iter().filter(|(room, _)| matches!(room.as_str(), "store" | "source")) {
        for (file, code) in files {
            // Where a statement is made, its text begins a few characters on.
            for call in ["query(", "query_as(", "query_scalar(", "raw_sql("] {
                for (at, _) in code.match_indices(call) {
                    let text: String = code[at + call.len()..].chars().take(60).collect();
                    let text = text.trim_start().trim_start_matches("concat!(").trim_start();
                    let named = text.starts_with(&format!("\"-- {room}.")) || text.starts_with("AssertSqlSafe(");
                    assert!(named, "src/{file}: {text}");
                }
            }
        }
    }
}

/// `routes!` takes route and description from the handler; what `route` adds has none. That is for pages, which people look at.
#[test]
fn a_route_is_documented() {
    for (file, code) in &rooms()["http"] {
        for call in code.split(".route(").skip(1) {
            let path = call.trim_start().trim_start_matches('"').split('"').next().unwrap();
            let is_page = path == "/" || path.starts_with("/page/");
            assert!(is_page, "src/{file}: {path} is not in the document of the API: use `routes!`");
        }
    }
}

#[test]
fn every_migration_has_a_number_of_its_own() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let numbers: Vec<String> = names.map(|name| name.split_once('_').unwrap().0.to_owned()).collect();
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len(), "{numbers:?}");
}

#[test]
fn every_setting_is_in_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(root.join(".env.example")).unwrap();
    let shown: BTreeSet<&str> =
        example.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).map(|(name, _)| name).collect();
    let code = &rooms()["config"][0].1;
    let upper = |c: char| c.is_ascii_uppercase() || c == '_';
    let read: BTreeSet<&str> = code
        .split("vars.")
        .filter_map(|call| call.split_once("(\"")?.1.split_once('"'))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(upper) && !["PATH", "XDG_RUNTIME_DIR", "FAILPOINTS"].contains(name))
        .collect();
    assert_eq!(read, shown.into_iter().filter(|name| name.chars().all(upper)).collect());
}

#[test]
fn the_torture_shares_no_code_with_the_service() {
    let torture = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/torture");
    for entry in std::fs::read_dir(torture).unwrap() {
        let path = entry.unwrap().path();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("cdc_export::"), "{}", path.display());
    }
}
