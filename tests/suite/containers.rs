//! The files that make the containers. `tests/docker.sh` runs the containers.

use std::path::Path;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn is_by_digest(image: &str) -> bool {
    let digest = image.split_once("@sha256:").map(|(_, digest)| digest);
    digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[test]
fn every_base_image_is_named_by_its_digest() {
    let dockerfile = read("Dockerfile");
    let mut stages = Vec::new();
    for line in dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        let words: Vec<_> = line.split(' ').collect();
        assert!(stages.contains(&words[0]) || is_by_digest(words[0]), "{line}");
        stages.extend(words.get(2));
    }
    let compose = read("docker-compose.yml");
    let images: Vec<_> = compose.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert!(!images.is_empty() && images.iter().all(|image| is_by_digest(image)), "{images:?}");
}

#[test]
fn the_image_says_what_it_is_and_is_no_roots() {
    let dockerfile = read("Dockerfile");
    let runtime =
        dockerfile.split("\nFROM ").find(|stage| stage.lines().next().unwrap().ends_with(" AS runtime")).unwrap();
    let user = runtime.lines().rfind(|line| line.starts_with("USER ")).unwrap();
    assert_eq!(user, "USER 65532:65532");
    let labels = runtime.split("\nLABEL ").nth(1).unwrap();
    for (label, value) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("version", "$VERSION"),
        ("revision", "$REVISION"),
        ("created", "$CREATED"),
        ("source", "$SOURCE"),
    ] {
        assert!(labels.contains(&format!("org.opencontainers.image.{label}=\"{value}\"")), "{label}");
        let argument = value.strip_prefix('$');
        assert!(
            argument.is_none_or(|name| runtime.contains(&format!("\nARG {name}="))),
            "{value} is no argument of the stage"
        );
    }
}

/// The services, by name, with what they share written out.
fn services() -> Vec<(String, String)> {
    let compose = read("docker-compose.yml");
    let (head, rest) = compose.split_once("\nservices:\n").unwrap();
    let shared = head.split_once("&exports\n").unwrap().1;
    let rest = rest.split_once("\nvolumes:\n").unwrap().0;
    let mut services = Vec::<(String, String)>::new();
    for line in rest.lines() {
        match line
            .strip_prefix("  ")
            .filter(|line| !line.starts_with([' ', '#']))
            .and_then(|line| line.strip_suffix(':'))
        {
            Some(name) => services.push((name.to_owned(), String::new())),
            None => {
                let Some((_, text)) = services.last_mut() else { continue };
                let written = if line.trim() == "<<: *exports" { shared } else { line };
                text.push_str(written);
                text.push('\n');
            }
        }
    }
    services
}

#[test]
fn every_container_has_the_capabilities_that_it_names_alone() {
    let services = services();
    assert_eq!(services.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["app", "worker", "db", "test"]);
    for (name, text) in services {
        for needed in ["cap_drop: [ALL]", "security_opt: [no-new-privileges:true]"] {
            assert!(text.lines().any(|line| line.trim() == needed), "{name} lacks {needed}");
        }
        assert!(!text.contains("privileged:") && !text.contains("docker.sock"), "{name}");
    }
}

#[test]
fn the_containers_role_is_no_superuser() {
    let compose = read("docker-compose.yml");
    let url = compose.lines().find_map(|line| line.trim().strip_prefix("DATABASE_URL: postgres://")).unwrap();
    let role = url.split_once(':').unwrap().0;
    let made = read("docker/exporter.sql");
    let made: String = made.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
    assert!(made.contains(&format!("create role {role} login password ")), "{role}");
    assert!(made.contains(&format!("alter database cdc_export owner to {role};")), "{role}");
    assert!(!made.contains("superuser") && compose.contains("./docker/exporter.sql:/docker-entrypoint-initdb.d/"));
}

/// A run that somebody starts by hand on an old tag would else publish it as the latest release.
#[test]
fn a_release_that_is_started_by_hand_publishes_nothing() {
    let workflow = read(".github/workflows/release.yml");
    let (_, publish) = workflow.split_once("\n  publish:\n").unwrap();
    let condition = publish.lines().find_map(|line| line.trim().strip_prefix("if: ")).unwrap();
    assert!(condition.starts_with("github.event_name == 'push' && "), "{condition}");
    assert!(workflow.contains("PUSH: ${{ github.event_name == 'push' }}"));
    assert!(!workflow.contains("ref_type"), "a run by hand on a tag has the type `tag` too");
}
