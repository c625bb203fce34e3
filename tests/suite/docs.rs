//! The docs and the code list the same settings, commands, events and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cdc_capture::Continuity;
use cdc_export::freshness::LaneState;
use cdc_export::job::{FailureCode, Phase};
use cdc_export::schedule::Refusal;
use pg_rows::column::ColumnType;
use serde_json::Value;

use crate::source_files::{code_below, files_below};
use crate::types::TYPES;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_setting_is_in_the_example() {
    let example = read(".env.example");
    let shown = example.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).map(|(name, _)| name);
    let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let shown: BTreeSet<&str> = shown.filter(is_name).collect();
    let code: String = code_below("src/config").into_iter().chain(code_below("src/config.rs")).map(|it| it.1).collect();
    let called = code.split("vars.").filter_map(|call| call.split_once("(\"")?.1.split_once('"'));
    let is_of_another = |name: &&str| !["PATH", "XDG_RUNTIME_DIR", "FAILPOINTS"].contains(name);
    let read: BTreeSet<&str> = called.map(|(name, _)| name).filter(is_name).filter(is_of_another).collect();
    assert_eq!(read, shown);
}

#[test]
fn each_word_of_an_error_a_job_and_a_lane_is_a_symptom() {
    let page = read("docs/SYMPTOMS.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let found: Vec<&str> = cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
    let problems = document(&["components", "schemas", "ProblemCode", "enum"]);
    let problems = problems.as_array().unwrap().iter().map(|code| code.as_str().unwrap());
    let mut words: BTreeSet<&str> = problems.collect();
    words.extend(Continuity::ALL.iter().map(|word| word.as_str()));
    words.extend(FailureCode::ALL.iter().map(|word| word.as_str()));
    words.extend(Refusal::ALL.iter().map(|word| word.as_str()));
    words.extend(Phase::ALL.iter().map(|word| word.as_str()));
    let healthy = |state: &&&str| !["fresh", "new"].contains(&**state);
    let states: Vec<&str> = LaneState::ALL.iter().map(|state| state.as_str()).collect();
    words.extend(states.iter().filter(healthy));
    words.extend(["pending", "processing"]);
    assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), words);
    assert_eq!(found.len(), words.len(), "a word has one place");
}

#[test]
fn each_alert_is_explained() {
    let operating = read("docs/guides/operating.md");
    let alerts = read("docs/alerts.yml");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(operating.contains(&format!("`{alert}`")), "operating.md has no line for {alert}");
    }
}

fn pages() -> Vec<PathBuf> {
    let names = ["docs", "seeds", "clients/python/README.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let pages = files_below(&names, "md");
    pages.into_iter().map(|(name, _)| root().join(name)).collect()
}

/// A heading as a link names it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.split("](").skip(1) {
            let link = rest.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !place.is_empty() {
                let target = std::fs::read_to_string(target).unwrap();
                let mut headings = target.lines().filter(|line| line.starts_with('#'));
                let leads = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == place);
                assert!(leads, "{}: {link}", page.display());
            }
        }
    }
}

#[test]
fn every_attack_has_a_test_that_is_there() {
    let text = read("docs/internals/ATTACKS.md");
    let table = text.split_once("## Table of attacks").unwrap().1;
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack ")).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let tests: Vec<_> = cells.last().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(cells.len() == 2 && !tests.is_empty(), "no test: {row}");
        for test in tests {
            let (module, name) = test.rsplit_once("::").unwrap_or_else(|| panic!("no module: {test}"));
            // A test of the suite, an expensive one, or one beside the code.
            let path = module.trim_end_matches("::tests").replace("::", "/");
            let file = match path.split_once('/').unwrap_or((&path, "lib")) {
                ("expensive", path) => format!("tests/expensive/{path}.rs"),
                (name, path) if Path::new("crates").join(name.replace('_', "-")).is_dir() => {
                    format!("crates/{}/src/{path}.rs", name.replace('_', "-"))
                }
                _ if module.ends_with("::tests") => format!("src/{path}.rs"),
                _ => format!("tests/suite/{path}.rs"),
            };
            assert!(read(&file).contains(&format!("fn {name}(")), "{file} has no test {name}");
        }
    }
}

/// The rows of a page's tables whose first cell is one name in backticks: that name, and the cells behind it.
fn rows_by_name(page: &str) -> BTreeMap<String, Vec<String>> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let cells = |rest: &str| rest.trim_end_matches(" |").split(" | ").map(str::to_owned).collect();
    rows.filter(|(name, _)| !name.contains('`')).map(|(name, rest)| (name.to_owned(), cells(rest))).collect()
}

#[test]
fn every_setting_is_explained_with_its_default() {
    let explained = rows_by_name(&read("docs/SETTINGS.md"));
    let example = read(".env.example");
    let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let settings: BTreeMap<&str, &str> = example
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('='))
        .filter(|(name, _)| is_name(name))
        .collect();
    let names: BTreeSet<&str> = explained.keys().map(|name| &**name).filter(is_name).collect();
    assert_eq!(names, settings.keys().copied().collect());
    for (name, default) in settings {
        let shown = &explained[name][0];
        let expected = if default.is_empty() { "unset".to_owned() } else { format!("`{default}`") };
        assert_eq!(shown, &expected, "the default of {name}");
    }
}

/// A value of the API's document, at a path of names.
fn document(path: &[&str]) -> Value {
    let document: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    path.iter().fold(document, |value, name| value[name].clone())
}

#[test]
fn every_call_is_explained_with_its_parameters_and_headers() {
    let page = read("docs/API.md");
    let components = document(&["components"]);
    let (mut words, mut calls) = (BTreeSet::new(), 0);
    for (path, methods) in document(&["paths"]).as_object().unwrap() {
        for (method, call) in methods.as_object().unwrap() {
            words.insert(format!("{} {path}", method.to_uppercase()));
            for parameter in call["parameters"].as_array().unwrap() {
                let name = parameter["name"].as_str().or(parameter["$ref"].as_str()).unwrap();
                let name = name.trim_start_matches("#/components/parameters/");
                words.extend((!path.contains(&format!("{{{name}}}"))).then(|| name.to_owned()));
            }
            let answers = call["responses"].as_object().unwrap().values();
            let headers = answers.filter_map(|answer| answer["headers"].as_object()).flatten();
            words.extend(headers.map(|(name, _)| name.clone()));
            calls += 1;
        }
    }
    words.extend(components["headers"].as_object().unwrap().keys().cloned());
    assert!(words.len() > calls, "no parameter and no header: {words:?}");
    let lacking: Vec<_> = words.iter().filter(|word| !page.contains(&format!("`{word}`"))).collect();
    assert!(lacking.is_empty(), "docs/API.md lacks {lacking:?}");
}

#[test]
fn every_member_and_word_is_described_in_the_document() {
    let is_described = |part: &Value| part["description"].as_str().is_some_and(|text| !text.trim().is_empty());
    let schemas = document(&["components", "schemas"]);
    for (name, schema) in schemas.as_object().unwrap() {
        for (member, part) in schema["properties"].as_object().into_iter().flatten() {
            // A member that may be null has its description beside the reference.
            let mut parts = part["oneOf"].as_array().into_iter().flatten().chain([part]);
            assert!(parts.any(is_described), "docs/openapi.json lacks {member} of {name}");
        }
        let text = schema["description"].as_str().unwrap_or_default();
        for word in schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let meaning = text.lines().find_map(|line| line.strip_prefix(&format!("- `{word}`: ")));
            assert!(meaning.is_some_and(|text| !text.is_empty()), "docs/openapi.json lacks {word} of {name}");
        }
    }
    assert!(schemas["Job"]["properties"]["number"].is_object() && schemas["Continuity"]["enum"].is_array());
}

#[test]
fn every_type_of_a_column_has_its_form_in_each_format() {
    // The compiler asks for a new kind here.
    let names = |kind| match kind {
        ColumnType::Int2 => ["smallint"].as_slice(),
        ColumnType::Int4 => &["integer"],
        ColumnType::Int8 => &["bigint"],
        ColumnType::Float4 => &["real"],
        ColumnType::Float8 => &["double precision"],
        ColumnType::Numeric => &["numeric"],
        ColumnType::Bool => &["boolean"],
        ColumnType::Text => &["text", "varchar", "every other type"],
        ColumnType::Uuid => &["uuid"],
        ColumnType::Bytea => &["bytea"],
        ColumnType::Json => &["json"],
        ColumnType::Jsonb => &["jsonb"],
        ColumnType::Timestamptz => &["timestamptz"],
        ColumnType::Timestamp => &["timestamp"],
        ColumnType::Date => &["date"],
        ColumnType::Time => &["time"],
    };
    let page = read("docs/FORMATS.md");
    let rows: Vec<Vec<&str>> =
        page.lines().filter_map(|line| Some(line.strip_prefix("| ")?.split(" | ").collect())).collect();
    for (kind, _) in TYPES {
        for name in names(kind) {
            let row = rows.iter().find(|row| row[0].replace('`', "").split(", ").any(|cell| cell == *name));
            let row = row.unwrap_or_else(|| panic!("docs/FORMATS.md has no row for {name}"));
            assert_eq!(row.len(), 4, "docs/FORMATS.md lacks a format of {name}");
            #[cfg(feature = "parquet")]
            for word in in_parquet(kind) {
                assert!(row[3].contains(&format!("`{word}`")), "{name} is `{word}` in Parquet, not {}", row[3]);
            }
        }
    }
}

/// The physical and the logical type of a kind of column, as Parquet's own printer names them.
#[cfg(feature = "parquet")]
fn in_parquet(kind: ColumnType) -> Vec<String> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use pg_rows::column::Column;
    use pg_rows::encoding::Format;

    let file = crate::types::file_of(Format::Parquet, vec![Column::new("v", kind)], &[]);
    let reader = SerializedFileReader::new(bytes::Bytes::from(file)).unwrap();
    let mut printed = Vec::new();
    parquet::schema::printer::print_schema(&mut printed, reader.metadata().file_metadata().schema());
    let printed = String::from_utf8(printed).unwrap();
    // `  OPTIONAL INT32 v (DATE);`
    let line = printed.lines().find(|line| line.contains(" v")).unwrap().trim().trim_end_matches(';');
    let (physical, logical) = line.trim_start_matches("OPTIONAL ").split_once(" v").unwrap();
    let logical = logical.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    [Some(physical), logical].into_iter().flatten().map(str::to_owned).collect()
}

#[test]
fn every_command_is_explained_with_its_options() {
    let page = read("docs/COMMANDS.md");
    let help = |command: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cdc-export")).args(command).arg("--help").output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let mut commands = vec![vec![]];
    while let Some(command) = commands.pop() {
        let text = help(&command);
        assert!(page.contains(&format!("`{}", [&["cdc-export"], &*command].concat().join(" "))), "{command:?}");
        let listed = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
        for name in listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()) {
            if !["help", ""].contains(&name) {
                commands.push([&*command, &[name.to_owned().leak()]].concat());
            }
        }
        let words = text.split_once("\nOptions:\n").map_or("", |(_, rest)| rest).split_whitespace();
        for option in words.filter(|word| word.starts_with("--") && !["--help", "--version"].contains(word)) {
            let option = option.trim_end_matches([',', ';', '.', ')']);
            assert!(page.contains(&format!("`{option}")), "docs/COMMANDS.md lacks {option} of {command:?}");
        }
    }
}

#[test]
fn the_readme_is_short_and_its_blocks_can_be_pasted() {
    let text = read("README.md");
    assert!(text.lines().count() <= 130, "{} lines", text.lines().count());
    assert!(text.lines().all(|line| line.starts_with('{') || line.chars().count() <= 150), "an answer is one line");
    for block in text.split("\n```sh\n").skip(1) {
        for line in block.split("\n```").next().unwrap().lines() {
            // zsh takes a comment for arguments, and a bare `?` for a file's name; a prompt is no command.
            assert!(!line.contains(" # ") && !line.starts_with(['#', '$']), "{line}");
            assert!(!line.contains('?') || line.contains(['"', '\'']), "{line}");
        }
    }
}
