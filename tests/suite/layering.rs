//! The layering: which module may use which, and what only some modules may name. `docs/ARCHITECTURE.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::source_files::{CAPTURE, ROOT, SourceFile, Use, source_files, texts, uses};

const NOUNS: [&str; 11] =
    ["audit", "catalog", "database", "duration", "event", "file", "freshness", "job", "key", "schedule", "trace"];

/// The modules that a module of the library may use, besides itself.
fn allowed(module: &str) -> BTreeSet<&'static str> {
    let own: &[&str] = match module {
        // `demo` defines a user of the demo's table.
        "http" => &["service", "demo"],
        "service" => &["demo", "store", "sink"],
        "worker" => &["pipeline", "publisher", "store", "sink"],
        "maintenance" => &["publisher", "store", "sink"],
        "publisher" => &["store", "sink"],
        "pipeline" => &["sink"],
        "demo" => &["store"],
        "delivery" => &["store"],
        "receiver" => &["delivery", "tls"],
        "apply" => &[],
        "client" => &["apply", "http", "sink", "tls"],
        "store" => &[],
        // For the download of the private server's programs.
        "postgres" => &["tls"],
        // Buckets.
        "sink" => &["tls"],
        "audit" | "catalog" | "database" | "duration" | "event" | "file" | "freshness" | "job" | "key" | "schedule"
        | "trace" => &[],
        // Their settings.
        "config" => {
            let settings = [
                // The transports that `receiver` builds.
                "delivery",
                "http",
                "maintenance",
                "postgres",
                "publisher",
                "receiver",
                "service",
                "sink",
                "telemetry",
                "worker",
            ];
            return settings.into_iter().chain(NOUNS).collect();
        }
        // `trace` for the place of a span.
        "telemetry" => return ["tls", "trace"].into(),
        "tls" => return BTreeSet::new(),
        other => panic!("src/{other} is a new module: say here and in docs/ARCHITECTURE.md which others it may use"),
    };
    let mut others: BTreeSet<_> = own.iter().copied().chain(NOUNS).collect();
    if !NOUNS.contains(&module) {
        others.insert("telemetry");
    }
    others
}

/// Returns true if the layering holds for a module. It doesn't for the command line, which wires the others.
fn is_layered(module: &str) -> bool {
    !matches!(module, "command" | "lib" | "main")
}

/// The files of each module, with their code without comments and tests. The statements of `cdc-capture` have names
/// that begin with `source`.
fn code_by_module() -> BTreeMap<String, Vec<(String, String)>> {
    let mut modules = BTreeMap::<_, Vec<_>>::new();
    for file in source_files(ROOT) {
        modules.entry(file.top().to_owned()).or_default().push((file.name, file.code));
    }
    let of_capture = source_files(CAPTURE).into_iter().map(|file| (file.name, file.code));
    modules.insert("source".to_owned(), of_capture.collect());
    modules
}

#[test]
fn a_module_uses_only_those_that_it_may() {
    for Use { by, of, .. } in uses(&source_files(ROOT)) {
        let (Some(module), Some(other)) = (by.first(), of.first()) else { continue };
        let may = module == other || !is_layered(module) || allowed(module).contains(other.as_str());
        assert!(may, "src/{} uses {other}, which {module} may not", by.join("/"));
    }
}

/// Modules that use each other in a circle are one module in several files: none can be read, or changed, by itself.
///
/// Only one of two modules of one parent may use the other, whatever it uses of it, and however deep below. If
/// `source::guard::columns` uses `source::capture::stamps`, then `guard` uses `capture`. A parent may use its children.
/// A child may use its parent's nouns (types, traits and constants: `store::Error`), which the modules below a parent
/// share. It may use a function of its parent only if the parent's file doesn't use that child. `pub use` counts for
/// nothing: it is how a parent shows its children.
#[test]
fn no_modules_use_each_other_in_a_circle() {
    let is_noun = |name: &str| name.chars().next().is_none_or(char::is_uppercase);
    // For each parent: the pairs of its modules of which the first uses the second.
    let mut parents = BTreeMap::<Vec<String>, BTreeSet<(String, String)>>::new();
    let prefixed = |path: Vec<String>| [&["cdc_capture".to_owned()], &*path].concat();
    let of_capture =
        uses(&source_files(CAPTURE)).into_iter().map(|it| Use { by: prefixed(it.by), of: prefixed(it.of), ..it });
    for Use { by, of, name, is_handed_on, .. } in uses(&source_files(ROOT)).into_iter().chain(of_capture) {
        let common = by.iter().zip(&of).take_while(|(a, b)| a == b).count();
        let is_of_parent = of.len() == common;
        if name.is_empty() || is_handed_on || is_of_parent && is_noun(&name) {
            continue;
        }
        let below = |path: &[String]| path.get(common).cloned().unwrap_or_else(|| "self".to_owned());
        parents.entry(by[..common].to_vec()).or_default().insert((below(&by), below(&of)));
    }
    let mut found = Vec::new();
    for (parent, edges) in &parents {
        let mut reached = edges.clone();
        loop {
            let further: Vec<_> = reached
                .iter()
                .flat_map(|(a, b)| edges.iter().filter(move |(c, _)| b == c).map(move |(_, d)| (a.clone(), d.clone())))
                .filter(|edge| !reached.contains(edge))
                .collect();
            if further.is_empty() {
                break;
            }
            reached.extend(further);
        }
        let circle_of = |a: &str| -> BTreeSet<&str> {
            let ahead = reached.iter().filter(|(from, _)| from == a).map(|(_, to)| to);
            ahead.filter(|to| reached.contains(&((*to).clone(), a.to_owned()))).map(String::as_str).collect()
        };
        let circles: BTreeSet<_> = reached.iter().filter(|(a, b)| a == b).map(|(a, _)| circle_of(a)).collect();
        for circle in circles {
            let inside: Vec<_> = edges
                .iter()
                .filter(|(a, b)| circle.contains(a.as_str()) && circle.contains(b.as_str()))
                .map(|(a, b)| format!("{a} uses {b}"))
                .collect();
            found.push(format!("{}: {}", parent.join("::"), inside.join(", ")));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A module gets what the modules that it uses hand to it: what their functions return, and what that contains. It must
/// be allowed to use the modules of all these types. Errors are exempt: as the cause of another error, one is shown by
/// its text alone.
#[test]
fn no_type_reaches_a_module_that_may_not_use_the_types_own() {
    let files = source_files(ROOT);
    let uses = uses(&files);
    let mut found = BTreeSet::new();
    // From each name of another module that a module uses to what that name hands over, and on from there within the
    // other module.
    let of_another =
        |it: &&Use| it.of.first().is_some_and(|of| it.by.first().is_some_and(|by| by != of && is_layered(by)));
    let mut open: Vec<(&str, &str, &str)> =
        uses.iter().filter(of_another).map(|it| (&*it.by[0], &*it.of[0], &*it.name)).collect();
    let mut seen: BTreeSet<_> = open.iter().copied().collect();
    let handed_over: Vec<_> = files.iter().map(|file| (file, handed_over(&file.code))).collect();
    while let Some((user, module, name)) = open.pop() {
        for (file, handed_over) in handed_over.iter().filter(|(file, _)| file.top() == module) {
            for (word, module_of_word) in handed_over.get(name).into_iter().flatten() {
                let is_it = |it: &&Use| {
                    it.by == file.path
                        && (it.local == *word || it.name == *word)
                        && module_of_word.as_ref().is_none_or(|of| it.of.last() == Some(of))
                };
                let (owner, name) = match uses.iter().find(is_it) {
                    Some(Use { of, name, .. }) if !of.is_empty() => (&*of[0], &**name),
                    _ => (module, &**word),
                };
                if owner != user && owner != module && !allowed(user).contains(owner) {
                    found.insert(format!("{owner}::{name} to {user} by {}", file.name));
                }
                if owner == module && seen.insert((user, module, word)) {
                    open.push((user, module, word));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The types that a name of a module hands over, each with the module that stands before it: a function what it
/// returns, a type what its public fields, its variants and its methods have.
fn handed_over(code: &str) -> BTreeMap<String, BTreeSet<(String, Option<String>)>> {
    let mut of_names = BTreeMap::<_, BTreeSet<_>>::new();
    let first_word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    // The `impl`, or the type, that a line is in, and whether that is an enum.
    let (mut block, mut is_enum) = (None, false);
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let declared = line.trim_start().strip_prefix("pub ").unwrap_or_default();
        let declared = ["async ", "const "].iter().fold(declared, |text, word| text.strip_prefix(word).unwrap_or(text));
        if let Some((_, name)) = line.strip_prefix("impl").and_then(|rest| rest.split_once(' ')) {
            block = Some(first_word(name.rsplit(" for ").next().unwrap()));
            is_enum = false;
        } else if line.starts_with('}') {
            block = None;
        } else if let Some(name) = declared.strip_prefix("enum ").or(declared.strip_prefix("struct ")) {
            block = Some(first_word(name)).filter(|_| line.ends_with('{'));
            is_enum = declared.starts_with("enum ");
        }
        let (name, text) = if let Some(function) = declared.strip_prefix("fn ") {
            let mut signature = function.to_owned();
            while !signature.ends_with(['{', ';', '}']) {
                signature.push_str(lines.next().unwrap());
            }
            let returned = signature.rsplit_once("->").map(|(_, returned)| returned.to_owned()).unwrap_or_default();
            (block.clone().unwrap_or(first_word(function)), returned)
        } else if let Some(name) = declared.strip_prefix("struct ").or(declared.strip_prefix("type ")) {
            (first_word(name), name.to_owned())
        } else if let Some(block) = &block {
            let is_shown = !declared.is_empty() || is_enum && !line.trim_start().starts_with('#');
            // A variant's own name is no type.
            let text = if is_enum { line.trim_start().trim_start_matches(char::is_alphanumeric) } else { line };
            (block.clone(), if is_shown { text.to_owned() } else { String::new() })
        } else {
            continue;
        };
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
            let mut path = word.trim_matches(':').rsplit("::");
            let word = path.next().unwrap_or_default();
            if word.starts_with(char::is_uppercase) && word != name && word != "Error" {
                of_names.entry(name.clone()).or_default().insert((word.to_owned(), path.next().map(str::to_owned)));
            }
        }
    }
    of_names
}

#[test]
fn what_only_some_modules_name() {
    let rules: &[(&str, &[&str])] = &[
        ("sqlx", &["apply", "demo", "postgres", "source", "store"]),
        ("StatusCode", &["http"]),
        ("std::env", &["config"]),
        ("rustix::fs", &["client", "config", "sink"]),
        ("std::fs", &["client", "command", "config", "sink"]),
        ("anyhow", &["command"]),
        ("object_store", &["sink"]),
        ("reqwest", &["client", "postgres", "receiver", "sink", "telemetry", "tls"]),
        ("println!", &["command"]),
        ("clap::", &["command"]),
        ("indicatif", &["command"]),
        ("prometheus::", &["telemetry"]),
        ("opentelemetry", &["telemetry"]),
        ("install_default", &["tls"]),
        // It takes `5M` for five months.
        ("parse_duration", &["duration"]),
    ];
    for (module, files) in code_by_module() {
        for (file, code) in files {
            for (word, naming) in rules {
                assert!(!code.contains(word) || naming.contains(&module.as_str()), "{file} names {word}");
            }
        }
    }
}

/// `sink::Settings` chooses the implementation of a destination. Beside it, only the lines that declare the module name
/// the feature.
#[test]
fn only_the_choice_of_a_destination_knows_the_feature_of_buckets() {
    let cfg = "cfg(feature = \"buckets\")";
    for (file, code) in &code_by_module()["sink"] {
        let most = match file.as_str() {
            "src/sink.rs" => 2,
            "src/sink/settings.rs" => usize::MAX,
            _ => 0,
        };
        assert!(code.matches(cfg).count() <= most, "{file}");
    }
}

#[test]
fn every_statement_is_headed_by_its_name() {
    for (module, files) in code_by_module()
        .iter()
        .filter(|(module, _)| matches!(module.as_str(), "apply" | "demo" | "postgres" | "store" | "source"))
    {
        for (file, code) in files {
            // The text of a statement begins a few characters after its call.
            for call in ["query(", "query_as(", "query_scalar(", "raw_sql("] {
                for (at, _) in code.match_indices(call) {
                    let text: String = code[at + call.len()..].chars().take(100).collect();
                    // A function that puts pieces into the statement.
                    let made = text.trim_start().trim_start_matches("AssertSqlSafe(");
                    let with_pieces = made.strip_prefix("with_").and_then(|call| call.split_once('('));
                    let text = with_pieces.map_or(text.trim_start(), |(_, statement)| statement.trim_start());
                    if let Some(included) = text.strip_prefix("include_str!(\"") {
                        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                        let path = root.join(file).with_file_name(included.split('"').next().unwrap());
                        let sql = std::fs::read_to_string(&path).unwrap();
                        assert!(sql.starts_with(&format!("-- {module}.")), "{}", path.display());
                        continue;
                    }
                    let named = text.starts_with(&format!("\"-- {module}.")) || text.starts_with("AssertSqlSafe(");
                    assert!(named, "{file}: {text}");
                }
            }
        }
    }
}

/// A longer statement is a `.sql` file, which can be read and run.
#[test]
fn a_statement_in_code_has_at_most_ten_lines() {
    // Pieces and functions that depend on the table, and what runs before there is a schema.
    let longer = [("crates/cdc-capture/src/capture/function_text.rs", 2), ("src/apply/position.rs", 1)];
    let words = ["select ", "insert into ", "update ", "delete from ", "create "];
    let mut found = BTreeMap::new();
    for SourceFile { name, code, .. } in [ROOT, CAPTURE].into_iter().flat_map(source_files) {
        for text in texts(&code) {
            // The first line is the statement's name.
            if text.trim().lines().count() > 11 && words.iter().any(|word| text.contains(word)) {
                *found.entry(name.clone()).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(found, longer.map(|(file, texts)| (file.to_owned(), texts)).into());
}

/// SQL that several statements share is a piece: a `.sql` file that they include.
#[test]
fn no_macro_makes_sql() {
    let words = ["select ", "from ", "where ", "update ", "insert ", "returning ", "case when ", " as "];
    let of_root = source_files(ROOT).into_iter().filter(|file| matches!(file.top(), "apply" | "store"));
    for file in of_root.chain(source_files(CAPTURE)) {
        for call in ["macro_rules!", "concat!("] {
            for (at, _) in file.code.match_indices(call) {
                let body = file.code[at..].split("\n}").next().unwrap();
                let sql = texts(body).into_iter().find(|text| words.iter().any(|word| text.contains(word)));
                assert_eq!(sql, None, "{}: {call}", file.name);
            }
        }
    }
}

/// `routes!` takes route and description from the handler; what `route` adds has none. That is for pages, which people
/// look at.
#[test]
fn a_route_is_documented() {
    for (file, code) in &code_by_module()["http"] {
        for call in code.split(".route(").skip(1) {
            let path = call.trim_start().trim_start_matches('"').split('"').next().unwrap();
            let is_page = path == "/" || path.starts_with("/page/") || path.starts_with("/docs/");
            assert!(is_page, "{file}: {path} is not in the document of the API: use `routes!`");
        }
    }
}

#[test]
fn every_setting_is_in_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(root.join(".env.example")).unwrap();
    let shown: BTreeSet<&str> =
        example.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).map(|(name, _)| name).collect();
    let code: String = code_by_module()["config"].iter().map(|(_, code)| code.as_str()).collect();
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
