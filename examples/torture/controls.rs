//! The controls: services that lack one protection each. A torture that doesn't find them out proves nothing about the
//! real one.
//!
//! The service has no switches for this. A control is the source tree with a few texts replaced, built in a folder of
//! its own; where a text is not there exactly once, the control says that the source has moved, and it is time to look
//! at both again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::bucket::Bucket;
use crate::builds::{self, Profile};
use crate::file_order;
use crate::moves::Move;
use crate::plan::Plan;
use crate::report::Counts;
use crate::trial::{Attack, Trial};
use crate::{place, print_violations, reachable_folder};

struct Control {
    name: &'static str,
    /// The invariant that must go red; `None`: nothing may.
    breaks: Option<&'static str>,
    edits: &'static [Edit],
    scenario: Scenario,
}

struct Edit {
    file: &'static str,
    text: &'static str,
    instead: &'static str,
}

#[derive(Clone, Copy)]
enum Scenario {
    /// What the nemesis does anyway, for so many seconds.
    Usual(u64),
    /// Workers stand before their commit while somebody else takes their jobs over.
    Overtaking(u64),
    /// The answers to COMMITs are lost.
    LostAnswers(u64),
    /// Readers hear nothing any more.
    SilentReaders(u64),
    /// The same as usual, and backfills.
    Backfills(u64),
    /// The database is put back to where exports were under way, and then no upload can be completed for a while.
    Restores(u64),
}

/// Leaves the job on doubt, and takes the file away with it.
const REMOVE_ON_DOUBT: Edit = Edit {
    file: "src/worker.rs",
    text: "            Ok(None) => return self.committed_after_all(lease, shutdown).await,\n",
    instead: "            Ok(None) => {
                for at in 0..lease.exports.len() {
                    let _ = self.destination.abort(&lease.hidden_file(at)).await;
                }
                return self.committed_after_all(lease, shutdown).await;
            }\n",
};

/// Names the file before anything is committed.
const PUBLISH_FIRST: Edit = Edit {
    file: "src/worker.rs",
    text: "        failpoint!(\"worker.extended\");\n",
    instead: "        let folder = std::path::PathBuf::from(std::env::var_os(\"OUTPUT_DIR\").unwrap_or_default());
        for (export, exported) in lease.exports().zip(&written.exports) {
            if let Some(part) = exported.parts.first() {
                let _ = std::fs::rename(folder.join(&part.staged.name), folder.join(&export.output_filename));
            }
        }
        failpoint!(\"worker.extended\");\n",
};

/// Gives all attempts at a job one key.
const KEY_WITHOUT_TOKEN: Edit = Edit {
    file: "src/file/name.rs",
    text: "        let key = format!(\"{dataset}/{consumer}/{stem}_{}{extension}\", &token[..8]);\n",
    instead: "        let _ = token;\n        let key = format!(\"{dataset}/{consumer}/{stem}_00000000{extension}\");\n",
};

/// A job whose end was forgotten when the database was put back runs again.
const RESTORED_JOB_RUNS: Edit = Edit {
    file: "src/source/opening.rs",
    text: "    if exported.is_restored { Err(Error::JobRestored(remedy)) } else { Ok(remedy) }\n",
    instead: "    Ok(remedy)\n",
};

/// The controls of a service whose files go to a bucket.
const IN_A_BUCKET: [Control; 4] = [
    // What the directed scenario does by itself is no violation.
    Control { name: "nothing", breaks: None, edits: &[], scenario: Scenario::Restores(70) },
    Control {
        name: "complete-first",
        breaks: Some("5"),
        edits: &[Edit {
            file: "src/sink/bucket/draft.rs",
            text: "        let location = FileLocation::Upload { key, upload, parts };\n",
            instead: "        let id = |id: &String| object_store::multipart::PartId { content_id: id.clone() };
        let (completed, ids) = (path(&key)?, Vec::from_iter(&parts).into_iter().map(id).collect());
        let _ = Handle::current().block_on(self.objects.patient.complete_multipart(&completed, &upload, ids));
        let location = FileLocation::Upload { key, upload, parts };\n",
        }],
        scenario: Scenario::Usual(60),
    },
    // Only what is committed gets completed, so two attempts at a job don't meet at its key as long as one database
    // remembers the first. One that was put back doesn't, but it refuses the job: the control takes that away too.
    Control {
        name: "key-without-token",
        breaks: Some("5"),
        edits: &[KEY_WITHOUT_TOKEN, RESTORED_JOB_RUNS],
        scenario: Scenario::Restores(70),
    },
    // Alone this is harmless: at a key that no other attempt has, whatever lies there is the attempt's. So the control
    // takes those protections away too. What a completion that failed finds is then the file of before.
    Control {
        name: "head-without-identity",
        breaks: Some("3"),
        edits: &[
            KEY_WITHOUT_TOKEN,
            RESTORED_JOB_RUNS,
            Edit {
                file: "src/sink/bucket.rs",
                text: "        Ok((is_attempts && found.meta.size == file.identity.bytes).then_some(found.meta.e_tag))\n",
                instead: "        let _ = is_attempts;\n        Ok(Some(found.meta.e_tag))\n",
            },
        ],
        scenario: Scenario::Restores(70),
    },
];

const CONTROLS: [Control; 15] = [
    // What the directed scenario does by itself is no violation.
    Control { name: "nothing", breaks: None, edits: &[], scenario: Scenario::Overtaking(15) },
    // A worker whose lease was given to another commits over it. Where the worker was stopped, Postgres has ended its
    // idle transaction by then, a lease after its last sign; so the lease has to be lost while it lives, as to a clock
    // that jumps.
    Control {
        name: "no-token",
        breaks: Some("4"),
        edits: &[Edit {
            file: "src/store/commit/commit.sql",
            text: "where job.id = $1 and job.lease_token = $2 and job.status",
            instead: "where job.id = $1 and $2::uuid is not null and job.status",
        }],
        // It ends when it is found out, and a busy machine starts few workers in a while.
        scenario: Scenario::Overtaking(60),
    },
    // A job that was taken over is ready later than those behind it.
    Control {
        name: "no-order",
        breaks: Some("6"),
        edits: &[Edit {
            file: "src/store/queue/ready.sql",
            text: "and earlier.published_at is null and earlier.status in ('open', 'completed')))",
            instead: "and earlier.published_at is null and earlier.status = 'completed'))",
        }],
        scenario: Scenario::Usual(60),
    },
    // A worker died between its commit and its file's name, and the lane goes on without it.
    Control {
        name: "no-wait-for-the-name",
        breaks: Some("6"),
        edits: &[
            Edit {
                file: "src/store/queue/ready.sql",
                text: "where (busy.status in ('processing', 'committed')",
                instead: "where (busy.status = 'processing'",
            },
            Edit {
                file: "src/store/queue/ready.sql",
                text: "and earlier.published_at is null and earlier.status in ('open', 'completed')))",
                instead: "and earlier.status = 'open'))",
            },
        ],
        scenario: Scenario::Usual(60),
    },
    Control { name: "publish-first", breaks: Some("5"), edits: &[PUBLISH_FIRST], scenario: Scenario::Usual(60) },
    // Late commits, back-dated rows and equal times are lost.
    Control {
        name: "time-alone",
        breaks: Some("1"),
        edits: &[Edit {
            file: "src/source/rows.rs",
            text: "if position.live.is_some() { Rule::LogToo } else { Rule::TimeAlone }",
            instead: "Rule::TimeAlone",
        }],
        scenario: Scenario::Usual(60),
    },
    // An export that was to be skipped if it is empty is skipped, although rows wait.
    Control {
        name: "skips-a-few-rows",
        breaks: Some("1"),
        edits: &[Edit {
            file: "src/pipeline.rs",
            text: "    if spec.skips_empty && written.stats.rows == 0 {\n",
            instead: "    if spec.skips_empty && written.stats.rows <= 3 {\n",
        }],
        scenario: Scenario::Usual(60),
    },
    // Each export of a job but the first is read at a snapshot of its own, and its position says so. So each lane by
    // itself is right.
    Control {
        name: "a-moment-each",
        breaks: Some("12"),
        edits: &[
            Edit {
                file: "src/source/import.rs",
                text: "pub(super) struct Import(String);",
                instead: "pub(super) struct Import(pub(super) String);",
            },
            Edit {
                file: "src/source/reading.rs",
                text: "        table.import.join(self.reader, &table.dataset.table).await?;\n",
                instead: "        if at > 0 {
            table.import.0 = table.import.0.replace(\"set transaction snapshot\", \"--\");
        }
        table.import.join(self.reader, &table.dataset.table).await?;
        if at > 0 {
            let now: String = sqlx::query_scalar(\"select pg_current_snapshot()::text\")
                .fetch_one(&mut *self.reader)
                .await
                .map_err(&failed)?;
            table.new_position.snapshot = Some(now);
            // No further reader, which would import the leader's.
            table.blocks = None;
        }\n",
            },
        ],
        scenario: Scenario::Usual(60),
    },
    // Each export of a job is committed by itself. A worker that dies in between leaves the rest undone.
    Control {
        name: "a-commit-each",
        breaks: Some("12"),
        edits: &[
            Edit {
                file: "src/store/commit.rs",
                text: "        let rows = complete(conn, lease, commits).await?;\n",
                instead: "        let mut rows = Vec::new();
        for commit in commits.chunks(1) {
            rows.extend(complete(conn, lease, commit).await?);
            if commits.len() > 1 {
                sqlx::raw_sql(\"commit; begin; savepoint writes\").execute(&mut *conn).await?;
            }
        }\n",
            },
            Edit {
                file: "src/store/commit/commit.sql",
                text: "job.lease_token = $2 and job.status = 'processing' and job.cancel_requested_at is null\n",
                instead: "(job.lease_token = $2 and job.status = 'processing' and job.cancel_requested_at is null
    or job.status = 'committed')\n",
            },
        ],
        scenario: Scenario::Usual(60),
    },
    // A backfill of one table costs the positions of others.
    Control {
        name: "gives-up-others",
        breaks: Some("1"),
        edits: &[Edit {
            file: "src/source/purge/give_up_large.sql",
            text: "  order by held.bytes desc, held.table_oid\n",
            instead: "  order by held.bytes, held.table_oid\n",
        }],
        scenario: Scenario::Backfills(60),
    },
    // A beat that waited for the commit's row lock finds no lease any more, and the finished job is taken for lost.
    // Alone this is found harmless: a worker that is told so reads the job again, and finds its own file recorded. So
    // the control takes that protection away too.
    Control {
        name: "heartbeat-not-joined",
        breaks: Some("3"),
        edits: &[
            Edit { file: "src/worker.rs", text: "        heartbeat.end().await;\n", instead: "" },
            Edit {
                file: "src/worker.rs",
                text: "            let connections = written.snapshot.commit(time).await?;\n",
                instead: "            let connections = tokio::select! {
                biased;
                stop = heartbeat.stopped() => return Err(Error::Stopped(stop)),
                done = written.snapshot.commit(time) => done?,
            };\n",
            },
            REMOVE_ON_DOUBT,
        ],
        scenario: Scenario::Usual(60),
    },
    // The same protection where it is needed with every heartbeat joined: the commit was made and its answer lost.
    Control {
        name: "remove-on-doubt",
        breaks: Some("3"),
        edits: &[REMOVE_ON_DOUBT],
        scenario: Scenario::LostAnswers(60),
    },
    // The event of a completed export is written with its commit, before its file has its name.
    Control {
        name: "told-at-the-commit",
        breaks: Some("11"),
        edits: &[Edit {
            file: "src/store/commit.rs",
            text: "        remember_masks(conn, commits).await?;\n",
            instead: "        sqlx::query(
            \"insert into cdc_export.deliveries (id, job, endpoint, event)
             values (gen_random_uuid(), $1, 'receiver', 'completed') on conflict do nothing\",
        )
        .bind(lease.id().as_uuid())
        .execute(&mut *conn)
        .await?;
        remember_masks(conn, commits).await?;\n",
        }],
        scenario: Scenario::Usual(60),
    },
    // The delivery is inserted in a transaction of its own. A process that dies between the two, or doesn't learn of
    // the first commit, loses the delivery.
    Control {
        name: "told-apart",
        breaks: Some("11"),
        edits: &[Edit {
            file: "src/store/transitions.rs",
            text: "            false => self.transaction(async |tx| transition(tx, &self.listeners, statement).await).await?,\n",
            instead: "            false => {
                let rows = self.transaction(async |tx| transition(tx, &[], statement).await).await?;
                self.with(async |conn| deliveries::plan(conn, &self.listeners, &rows).await).await?;
                rows
            }\n",
        }],
        scenario: Scenario::LostAnswers(20),
    },
    // A reader that hears nothing is waited for, as long as leader and heartbeat live: its job never ends.
    Control {
        name: "no-look-at-readers",
        breaks: Some("9"),
        edits: &[Edit {
            file: "src/source/session.rs",
            text: "            Activity::Listens | Activity::Gone => quiet >= answer_timeout(lease),\n",
            instead: "            Activity::Listens | Activity::Gone => quiet >= 1_000 * answer_timeout(lease),\n",
        }],
        scenario: Scenario::SilentReaders(15),
    },
];

/// Runs one control or all. False: one of them was not found out, or something red where nothing is wrong.
pub(crate) async fn run(seed: u64, only: Option<&str>, store: Option<Bucket>) -> Result<bool> {
    // The order of file operations is a folder's.
    let (controls, misordered): (&[Control], &[Misordered]) =
        if store.is_some() { (&IN_A_BUCKET, &[]) } else { (&CONTROLS, &MISORDERED) };
    let chosen: Vec<_> = controls.iter().filter(|control| only.is_none_or(|name| name == control.name)).collect();
    let names = controls.iter().map(|control| control.name).chain(misordered.iter().map(|(name, ..)| *name));
    let names: Vec<_> = names.collect();
    if only.is_some_and(|name| !names.contains(&name)) {
        bail!("there is no such control; there are: {}", names.join(", "));
    }
    let mut all_found_out = find_misordered(misordered, only).await?;
    for control in chosen {
        let begun = Instant::now();
        let binary = build(control.edits).await.with_context(|| control.name)?;
        let built = begun.elapsed();
        // What a service without its protection does wrong needs a moment that not every plan meets: three may.
        let mut tries = seed..seed + 3;
        let (folder, report, counts) = loop {
            let folder = reachable_folder()?;
            let tried = tries.next().context("a control has a try left")?;
            let (report, counts) = trial(control, tried, binary.clone(), store.clone()).run(folder.path()).await?;
            if control.breaks.is_none_or(|invariant| report.has(invariant)) || tries.is_empty() {
                break (folder, report, counts);
            }
            println!("control {}: not found out with seed {tried}", control.name);
        };
        let Counts { zombies, completed, .. } = counts;
        let deaths = counts.deaths.total();
        let found: Vec<_> = report.violations().keys().copied().collect();
        let found_out = control.breaks.map_or(found.is_empty(), |invariant| found.contains(&invariant));
        println!(
            "control {}: {}; red: {found:?}; {deaths} deaths, {zombies} zombies, {completed} completed; {:.0} s, {:.0} of them to build",
            control.name,
            if found_out { "as it must be" } else { "NOT AS IT MUST BE" },
            begun.elapsed().as_secs_f64(),
            built.as_secs_f64(),
        );
        print_violations(&report, 1);
        if !found_out {
            println!("logs and files: {}", folder.keep().display());
        }
        all_found_out &= found_out;
    }
    println!("{}", if all_found_out { "every control is as it must be" } else { "NOT PASSED" });
    Ok(all_found_out)
}

fn trial(control: &Control, seed: u64, binary: PathBuf, store: Option<Bucket>) -> Trial {
    let replicas = place::replicas(store.as_ref());
    let attack = match control.scenario {
        Scenario::Usual(secs) => Attack::Planned(Plan::new(seed, replicas, Duration::from_secs(secs), &[])),
        Scenario::Backfills(secs) => {
            Attack::Planned(Plan::new(seed, replicas, Duration::from_secs(secs), &[Move::Backfill]))
        }
        Scenario::Overtaking(secs) => Attack::Overtaking(Duration::from_secs(secs)),
        Scenario::SilentReaders(secs) => Attack::Planned(Plan::of_silent_readers(replicas, Duration::from_secs(secs))),
        Scenario::LostAnswers(secs) => Attack::Planned(Plan::of_lost_answers(replicas, Duration::from_secs(secs))),
        Scenario::Restores(secs) => Attack::Planned(Plan::of_restores(replicas, Duration::from_secs(secs))),
    };
    Trial {
        seed,
        failpoints: Vec::new(),
        debug: binary.clone(),
        struck: binary,
        attack,
        ends_with: control.breaks,
        store,
        clock: None,
        has_bystander: false,
    }
}

/// A service whose file operations are in another order, and the rule that it breaks.
type Misordered = (&'static str, &'static str, &'static [Edit]);

const MISORDERED: [Misordered; 4] = [
    (
        "file-not-synced",
        "the file is synced",
        &[
            Edit {
                file: "src/sink/folder/draft.rs",
                text: "        self.file.sync_all().map_err(self.cannot(\"sync\"))?;\n",
                instead: "",
            },
            // One that was to begin earlier may come late enough to do instead.
            Edit {
                file: "src/sink/folder/draft.rs",
                text: "self.size - self.synced >= SYNC_EVERY_BYTES",
                instead: "self.size >= SYNC_EVERY_BYTES && false",
            },
        ],
    ),
    (
        "hidden-name-not-synced",
        "the hidden name is synced",
        &[Edit { file: "src/sink/folder/draft.rs", text: "        path.dir.sync()?;\n", instead: "" }],
    ),
    ("published-before-the-commit", "the file gets its name after the commit", &[PUBLISH_FIRST]),
    (
        "name-not-synced",
        "the name is synced",
        &[Edit {
            file: "src/sink/folder.rs",
            text: "        dir.sync()?;\n        Ok(published)\n",
            instead: "        Ok(published)\n",
        }],
    ),
];

/// Looks at the order of file operations of services that have another one. False: one isn't found out.
async fn find_misordered(misordered: &[Misordered], only: Option<&str>) -> Result<bool> {
    let mut all_found_out = true;
    for (name, rule, edits) in misordered.iter().filter(|(name, ..)| only.is_none_or(|only| only == *name)) {
        let binary = build(edits).await.context(*name)?;
        let broken = file_order::check(&binary, reachable_folder()?.path()).await?;
        let found_out = broken.iter().any(|line| line.contains(rule));
        println!("control {name}: {}: {broken:?}", if found_out { "as it must be" } else { "NOT AS IT MUST BE" });
        all_found_out &= found_out;
    }
    Ok(all_found_out)
}

/// Fails if a control can't be made of the tree any more.
pub(crate) fn require_applicable(tree: &Path) -> Result<()> {
    let of_misordered = MISORDERED.iter().flat_map(|(.., edits)| edits.iter());
    let of_controls = CONTROLS.iter().chain(&IN_A_BUCKET).flat_map(|control| control.edits);
    for edit in of_controls.chain(of_misordered) {
        let content = std::fs::read_to_string(tree.join(edit.file));
        edited(content.with_context(|| format!("the source has moved: there is no {}", edit.file))?, edit)?;
    }
    Ok(())
}

/// Builds the service without the control's protection. One folder for all of them, so that each compiles only what
/// differs.
async fn build(edits: &[Edit]) -> Result<PathBuf> {
    let place = builds::tree().join("target/torture-controls");
    let tree = place.join("tree");
    let target = place.join("target");
    if !target.exists() {
        borrow_dependencies(&target).await?;
        // Written anew after what is borrowed: cargo would else take the service as it is for one that is built from
        // the edits.
        if tree.exists() {
            std::fs::remove_dir_all(&tree)?;
        }
    }
    copy_tree(builds::tree(), &tree, edits).await?;
    builds::build(&tree, Profile::Debug, Some(&target)).await
}

/// Copies what cargo compiled of the dependencies for the tree itself. To compile them again takes minutes.
async fn borrow_dependencies(target: &Path) -> Result<()> {
    let ours = builds::build(builds::tree(), Profile::Debug, None).await?;
    let ours = ours.parent().context("a binary is in a folder")?;
    let theirs = target.join("debug");
    std::fs::create_dir_all(&theirs)?;
    for part in ["build", "deps", ".fingerprint"] {
        // With their times, by which cargo goes.
        let copied = Command::new("cp").arg("-Rp").arg(ours.join(part)).arg(&theirs).output().await?;
        ensure!(copied.status.success(), "cp: {}", String::from_utf8_lossy(&copied.stderr));
    }
    Ok(())
}

/// The program that a control is built with, for the features of its dependencies. A control doesn't need its text.
const THIS_PROGRAM: &str = "examples/torture/main.rs";

async fn copy_tree(from: &Path, to: &Path, edits: &[Edit]) -> Result<()> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(from).output().await?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout)?;
    for name in listed.split_terminator('\0') {
        let Ok(mut content) = std::fs::read(from.join(name)) else { continue };
        if name == THIS_PROGRAM {
            content = b"//! In the place of the torture.\nfn main() {}\n".to_vec();
        }
        for edit in edits.iter().filter(|edit| edit.file == name) {
            content = edited(String::from_utf8(content)?, edit)?.into_bytes();
        }
        // Cargo goes by times: what is the same keeps its own.
        let copy = to.join(name);
        if std::fs::read(&copy).ok().as_ref() != Some(&content) {
            std::fs::create_dir_all(copy.parent().context("a file has a folder")?)?;
            std::fs::write(&copy, content)?;
        }
    }
    for edit in edits {
        ensure!(listed.split('\0').any(|name| name == edit.file), "the source has moved: there is no {}", edit.file);
    }
    Ok(())
}

fn edited(content: String, edit: &Edit) -> Result<String> {
    let found = content.matches(edit.text).count();
    ensure!(found == 1, "the source has moved: {} has {found} times `{}`", edit.file, edit.text.trim());
    Ok(content.replace(edit.text, edit.instead))
}
