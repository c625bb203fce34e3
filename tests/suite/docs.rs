//! What the docs say is there, and all that there is has its line.

use std::path::{Path, PathBuf};

use cdc_export::job::{Continuity, FailureCode};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn whatever_an_operator_meets_is_explained() {
    let operating = read("docs/guides/operating.md");
    let first_cells: Vec<_> =
        operating.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    let alerts = read("docs/alerts.yml");
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let words = Continuity::ALL.iter().map(|word| word.as_str());
    let codes = FailureCode::ALL.iter().map(|code| code.as_str());
    for word in alerts.chain(words).chain(codes) {
        assert!(
            first_cells.iter().any(|cell| cell.contains(&format!("`{word}`"))),
            "operating.md has no line for {word}"
        );
    }
}

/// Every Markdown file of the project.
fn pages() -> Vec<PathBuf> {
    let (mut pages, mut folders) = (Vec::new(), vec![root().join("docs"), root().join("seeds")]);
    pages.extend(["README.md", "CHANGELOG.md"].map(|name| root().join(name)));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
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
    let text = read("docs/SECURITY.md");
    let table = text.split_once("## Table of attacks").unwrap().1;
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack ")).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let tests: Vec<_> = cells.last().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(cells.len() == 3 && !tests.is_empty(), "no test: {row}");
        for test in tests {
            let (module, name) = test.rsplit_once("::").unwrap_or_else(|| panic!("no module: {test}"));
            // A test of the suite, or one beside the code.
            let file = match module.strip_suffix("::tests") {
                Some(module) => format!("src/{}.rs", module.replace("::", "/")),
                None => format!("tests/suite/{}.rs", module.replace("::", "/")),
            };
            assert!(read(&file).contains(&format!("fn {name}(")), "{file} has no test {name}");
        }
    }
}
