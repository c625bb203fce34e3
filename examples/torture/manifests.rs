//! Checks the manifests by themselves: from them alone, a reader replays what the oracle replays from the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::clients::sha256;
use crate::era::{Era, Export};
use crate::lanes::AD_HOC;
use crate::report::Report;
use crate::trial::World;

struct Manifest {
    name: String,
    number: i64,
    job: String,
    digest: String,
    previous: Option<String>,
    snapshot: Option<String>,
    files: Vec<String>,
    /// The number of the job's exports that have files, if the job's request had `datasets`.
    datasets: Option<String>,
}

impl Manifest {
    fn read(name: &str, text: &[u8]) -> Result<(String, Manifest)> {
        let value: Value = serde_json::from_slice(text)?;
        let export = &value["export"];
        let text = |of: &Value| of.as_str().map(str::to_owned).context("a text is missing");
        let files = export["files"].as_array().context("it has no files")?;
        let job = &export["job"];
        let manifest = Manifest {
            name: name.to_owned(),
            number: value["number"].as_i64().context("it has no number")?,
            job: text(if job.is_object() { &job["id"] } else { job })?,
            digest: text(&value["digest"])?,
            previous: export["previous"].as_str().map(str::to_owned),
            snapshot: export["snapshot"].as_str().map(str::to_owned),
            files: files.iter().map(|file| text(&file["sha256"])).collect::<Result<_>>()?,
            datasets: job.is_object().then(|| text(&job["datasets"])).transpose()?,
        };
        anyhow::ensure!(sha256(canonical(export).as_bytes()) == manifest.digest, "its digest is of another content");
        Ok((format!("{}/{}", text(&export["consumer"])?, text(&export["dataset"])?), manifest))
    }
}

/// Returns RFC 8785 of a value without numbers. Leaves out the paths of the files.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<_, _> = members.iter().filter(|(name, _)| *name != "path").collect();
            let members =
                sorted.iter().map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), canonical(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// 2, 3 and 6: Each published export of a consumer has a manifest with its number and the hash of its file. If the
/// database was never restored, a lane has no other manifests, and each names the one before. 12: Nor has a job of
/// several datasets, and each of its manifests says how many there are.
pub(crate) async fn check(world: &World, era: &Era) -> Result<()> {
    let report: &Arc<Report> = &world.report;
    let mut lanes: HashMap<String, Vec<Manifest>> = HashMap::new();
    for name in world.place.list().await?.manifests {
        let Some(text) = world.place.read(&name).await? else { continue };
        match Manifest::read(&name, &text) {
            Ok((lane, manifest)) => lanes.entry(lane).or_default().push(manifest),
            Err(error) => report.red("5", format!("{name}: {error:#}")),
        }
    }
    let of_all: HashMap<String, &Manifest> =
        lanes.values().flatten().map(|manifest| (manifest.digest.clone(), manifest)).collect();
    for export in era.completed().filter(|export| export.published && export.lane != AD_HOC) {
        let Export { job, lane, number, sha256, digest, .. } = export;
        let Some(found) = digest.as_ref().and_then(|digest| of_all.get(digest)) else {
            report.red("3", format!("{job} of {lane} is published, and has no manifest of its digest {digest:?}"));
            continue;
        };
        if found.job != job.to_string() || Some(found.number) != *number || found.files.first() != sha256.as_ref() {
            report.red("3", format!("{} is not the manifest of {job} of {lane}, number {number:?}", found.name));
        }
        let position = era.commits.get(&export.id()).and_then(|(_, snapshot)| snapshot.as_ref());
        if found.snapshot.as_ref() != position && !era.leaves_no_position(export) {
            let said = &found.snapshot;
            report.red("3", format!("{} is of {said:?}, and brought its consumer to {position:?}", found.name));
        }
    }
    // 12: A reader of the manifests alone relies on these snapshots.
    for (id, job) in era.jobs() {
        let found = job.exports.iter().filter_map(|export| of_all.get(export.digest.as_ref()?));
        let snapshots: BTreeSet<_> = found.map(|manifest| &manifest.snapshot).collect();
        if snapshots.len() > 1 {
            report.red("12", format!("the manifests of the job {id} are of {snapshots:?}"));
        }
    }
    if world.was_turned_over() {
        return Ok(());
    }
    for (id, job) in era.jobs() {
        let published = job.exports.iter().filter(|export| export.published && export.lane != AD_HOC).count();
        let has_made = |export: &&&Export| export.status == "completed" || export.has_lost_its_file();
        let made = job.exports.iter().filter(has_made).count();
        let due = job.is_of_datasets.then(|| made.to_string());
        let text = id.to_string();
        let said = of_all.values().filter(|manifest| manifest.job == text).map(|manifest| &manifest.datasets);
        let said: Vec<_> = said.collect();
        if said.len() != published || said.iter().any(|datasets| **datasets != due) {
            report.red("12", format!("the job {id} made {made} files, published {published}: {said:?}"));
        }
    }
    for (lane, manifests) in &mut lanes {
        manifests.sort_by_key(|manifest| manifest.number);
        let (mut number, mut before) = (0, None);
        for manifest in manifests {
            number += 1;
            if manifest.number != number || manifest.previous != before {
                report.red("6", format!("{lane}: {} is no number {number} after {before:?}", manifest.name));
            }
            before = Some(manifest.digest.clone());
        }
        let published = era.of_lane(lane).filter(|export| export.published).count() as i64;
        if number != published {
            report.red("6", format!("{lane}: there are {number} manifests of {published} published exports"));
        }
    }
    Ok(())
}
