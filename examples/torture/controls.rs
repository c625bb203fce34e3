//! The controls: services that each lack one protection. If the torture doesn't detect them, it proves nothing about
//! the real service.
//!
//! The service has no switches for this. A control is a copy of the source tree with a few replaced texts, built in its
//! own folder. Each text must occur exactly once. Otherwise the control says that the source has moved, and both must
//! be compared again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::bucket::Bucket;
use crate::builds::{self, Profile};
use crate::cluster::succeed;
use crate::plan::{Move, Plan};
use crate::trial::Trial;
use crate::{file_order, place, print_violations, reachable_folder};

struct Control {
    name: &'static str,
    /// The invariant that must be violated, or the rule of [`file_order`] that must be broken. `None`: none may be.
    breaks: Option<&'static str>,
    /// `None`: one export, whose file operations strace records.
    scenario: Option<Scenario>,
    /// The name of a file, then texts that begin with `-`, and after each text its replacement, with `+`.
    edits: &'static [&'static str],
}

/// Makes the plan for a seed and a number of replicas.
type Scenario = fn(u64, usize) -> Plan;

const MINUTE: Duration = Duration::from_secs(60);

/// The nemesis makes its usual faults, and no moves.
const USUAL: Scenario = |seed, replicas| Plan::new(seed, replicas, MINUTE, &[]);

const BACKFILLS: Scenario = |seed, replicas| Plan::new(seed, replicas, MINUTE, &[Move::Backfill]);

const OVERTAKING: Scenario = |_, _| Plan::of_overtaking(MINUTE);

const LOST_ANSWERS: Scenario = |_, replicas| Plan::of_lost_answers(replicas, MINUTE);

const SILENT_READERS: Scenario = |_, replicas| Plan::of_silent_readers(replicas, Duration::from_secs(15));

const RESTORES: Scenario = |_, replicas| Plan::of_restores(replicas, Duration::from_secs(70));

/// Removes the file of a job when the worker can't tell whether the job is committed.
const REMOVE_ON_DOUBT: &str = "src/worker.rs
-            Ok(None) => return self.committed_after_all(lease, shutdown).await,
+            Ok(None) => {
+                for at in 0..lease.exports.len() {
+                    let _ = self.destination.abort(&lease.hidden_file(at)).await;
+                }
+                return self.committed_after_all(lease, shutdown).await;
+            }";

/// Gives the file its name before the commit.
const PUBLISH_FIRST: &str = r#"src/worker.rs
-        failpoint!("worker.extended");
+        let folder = std::path::PathBuf::from(std::env::var_os("OUTPUT_DIR").unwrap_or_default());
+        for member in &written.members {
+            if let Some(part) = member.exported.parts.first() {
+                let name = &member.leased.export.output_filename;
+                let _ = std::fs::rename(folder.join(&part.staged.name), folder.join(name));
+            }
+        }
+        failpoint!("worker.extended");"#;

/// Gives all attempts at a job the same key.
const KEY_WITHOUT_TOKEN: &str = r#"crates/cdc-destination/src/file_name.rs
-        let key = format!("{dataset}/{consumer}/{stem}_{}{extension}", &token[..8]);
+        let _ = token;
+        let key = format!("{dataset}/{consumer}/{stem}_00000000{extension}");"#;

/// Runs a job again whose end the restored database has forgotten.
const RESTORED_JOB_RUNS: &str = "crates/cdc-capture/src/opening.rs
-        return Err(Error::JobRestored(remedy));
+        tracing::trace!(?remedy);";

/// Controls of a service that writes to a bucket.
const IN_A_BUCKET: &[Control] = &[
    // The directed scenario by itself must not violate an invariant.
    Control { name: "nothing", breaks: None, scenario: Some(RESTORES), edits: &[] },
    Control {
        name: "complete-first",
        breaks: Some("5"),
        scenario: Some(USUAL),
        edits: &["crates/cdc-destination/src/bucket/draft.rs
-        let location = FileLocation::Upload { key, upload, parts };
+        let id = |id: &String| object_store::multipart::PartId { content_id: id.clone() };
+        let (completed, ids) = (path(&key)?, Vec::from_iter(&parts).into_iter().map(id).collect());
+        let _ = Handle::current().block_on(self.objects.patient.complete_multipart(&completed, &upload, ids));
+        let location = FileLocation::Upload { key, upload, parts };"],
    },
    // Only committed uploads are completed, so two attempts can't meet at one key while the database knows the first. A
    // restored database has forgotten the first attempt, but refuses the job. The control removes that, too.
    Control {
        name: "key-without-token",
        breaks: Some("5"),
        scenario: Some(RESTORES),
        edits: &[KEY_WITHOUT_TOKEN, RESTORED_JOB_RUNS],
    },
    // This edit alone is harmless: no other attempt has the same key, so any object there is the attempt's own. The
    // control removes those protections too. A completion that failed then finds the older file.
    Control {
        name: "head-without-identity",
        breaks: Some("3"),
        scenario: Some(RESTORES),
        edits: &[
            KEY_WITHOUT_TOKEN,
            RESTORED_JOB_RUNS,
            "crates/cdc-destination/src/bucket.rs
-        Ok((is_attempts && found.meta.size == file.identity.bytes).then_some(found.meta.e_tag))
+        let _ = is_attempts;
+        Ok(Some(found.meta.e_tag))",
        ],
    },
];

/// Controls of a service that writes to a folder.
const IN_A_FOLDER: &[Control] = &[
    Control {
        name: "file-not-synced",
        breaks: Some("the file is synced"),
        scenario: None,
        // An earlier sync may come late enough to replace the last one. So the control removes both.
        edits: &["crates/cdc-destination/src/folder/draft.rs
-        self.file.sync_all().map_err(self.cannot(\"sync\"))?;
+
-self.size - self.synced >= SYNC_EVERY_BYTES
+self.size >= SYNC_EVERY_BYTES && false"],
    },
    Control {
        name: "hidden-name-not-synced",
        breaks: Some("the hidden name is synced"),
        scenario: None,
        edits: &["crates/cdc-destination/src/folder/draft.rs
-        path.dir.sync()?;
+"],
    },
    Control {
        name: "published-before-the-commit",
        breaks: Some("the file gets its name after the commit"),
        scenario: None,
        edits: &[PUBLISH_FIRST],
    },
    Control {
        name: "name-not-synced",
        breaks: Some("the name is synced"),
        scenario: None,
        edits: &["crates/cdc-destination/src/folder.rs
-        dir.sync()?;
-        Ok(published)
+        Ok(published)"],
    },
    // The directed scenario by itself must not violate an invariant.
    Control {
        name: "nothing",
        breaks: None,
        scenario: Some(|_, _| Plan::of_overtaking(Duration::from_secs(15))),
        edits: &[],
    },
    // A worker whose lease was given to another commits. Postgres ends the idle transaction of a stopped worker one
    // lease after its last sign of life. So the worker must lose the lease while it lives, as after a jump of the
    // clock.
    Control {
        name: "no-token",
        breaks: Some("4"),
        scenario: Some(OVERTAKING),
        edits: &["src/store/commit/commit.sql
-where job.id = $1 and job.lease_token = $2 and job.status
+where job.id = $1 and $2::uuid is not null and job.status"],
    },
    // A job that was taken over becomes ready later than the jobs behind it.
    Control {
        name: "no-order",
        breaks: Some("6"),
        scenario: Some(USUAL),
        edits: &["src/store/queue/ready.sql
-and earlier.published_at is null and earlier.status in ('open', 'completed')))
+and earlier.published_at is null and earlier.status = 'completed'))"],
    },
    // A worker dies between its commit and the publication of its file. The lane goes on without that file.
    Control {
        name: "no-wait-for-the-name",
        breaks: Some("6"),
        scenario: Some(USUAL),
        edits: &["src/store/queue/ready.sql
-where (busy.status in ('processing', 'committed')
+where (busy.status = 'processing'
-and earlier.published_at is null and earlier.status in ('open', 'completed')))
+and earlier.status = 'open'))"],
    },
    Control { name: "publish-first", breaks: Some("5"), scenario: Some(USUAL), edits: &[PUBLISH_FIRST] },
    // Rows with late commits, back-dated times or equal times are lost.
    Control {
        name: "time-alone",
        breaks: Some("1"),
        scenario: Some(USUAL),
        edits: &["crates/cdc-capture/src/select.rs
-        self.position.live.is_some()
+        false"],
    },
    // An export with `skipEmpty` is skipped although up to three rows wait.
    Control {
        name: "skips-a-few-rows",
        breaks: Some("1"),
        scenario: Some(USUAL),
        edits: &["src/pipeline.rs
-    if spec.skips_empty && written.stats.rows == 0 {
+    if spec.skips_empty && written.stats.rows <= 3 {"],
    },
    // Each export of a job except the first reads its own snapshot. So each lane by itself is right.
    Control {
        name: "a-moment-each",
        breaks: Some("12"),
        scenario: Some(USUAL),
        edits: &[
            "crates/cdc-capture/src/import.rs
-pub(super) struct Import(String);
+pub(super) struct Import(pub(super) String);",
            r#"crates/cdc-capture/src/reading.rs
-            let of_leaf = leaf.map(|leaf| Import::new(&table.imported, &table.dataset, &table.schema, Some(leaf)));
-            of_leaf.as_ref().unwrap_or(&table.import).join(self.reader, &table.dataset.table).await?;
+            let mut import = Import::new(&table.imported, &table.dataset, &table.schema, leaf);
+            if at > 0 {
+                import.0 = import.0.replace("set transaction snapshot", "--");
+            }
+            import.join(self.reader, &table.dataset.table).await?;
+            if at > 0 {
+                let now: String = sqlx::query_scalar("select pg_current_snapshot()::text")
+                    .fetch_one(&mut *self.reader)
+                    .await
+                    .map_err(&failed)?;
+                table.new_position.snapshot = Some(now);
+                // No further reader, which would import the leader's.
+                table.blocks = None;
+            }"#,
        ],
    },
    // Each export of a job is committed by itself. A worker that dies between two commits leaves the rest undone.
    Control {
        name: "a-commit-each",
        breaks: Some("12"),
        scenario: Some(USUAL),
        edits: &[
            r#"src/store/commit.rs
-        let rows = complete(conn, lease, commits).await?;
+        let mut rows = Vec::new();
+        for commit in commits.chunks(1) {
+            rows.extend(complete(conn, lease, commit).await?);
+            if commits.len() > 1 {
+                sqlx::raw_sql("commit; begin; savepoint writes").execute(&mut *conn).await?;
+            }
+        }"#,
            "src/store/commit/commit.sql
-job.lease_token = $2 and job.status = 'processing' and job.cancel_requested_at is null
+(job.lease_token = $2 and job.status = 'processing' and job.cancel_requested_at is null
+    or job.status = 'committed')",
        ],
    },
    // A backfill of one table makes the service give up positions of other tables.
    Control {
        name: "gives-up-others",
        breaks: Some("1"),
        scenario: Some(BACKFILLS),
        edits: &["crates/cdc-capture/src/purge/give_up_large.sql
-  order by held.bytes desc, held.table_oid
+  order by held.bytes, held.table_oid"],
    },
    // A heartbeat that waited for the commit's row lock finds no lease, and the worker takes the finished job for lost.
    // This edit alone is harmless: the worker then reads the job again and finds its own file recorded. So the control
    // removes that protection too.
    Control {
        name: "heartbeat-not-joined",
        breaks: Some("3"),
        scenario: Some(USUAL),
        edits: &[
            "src/worker.rs
-        heartbeat.end().await;
+
-            let connections = written.snapshot.commit(times.commit).await?;
+            let connections = tokio::select! {
+                biased;
+                stop = heartbeat.stopped() => return Err(Error::Stopped(stop)),
+                done = written.snapshot.commit(times.commit) => done?,
+            };",
            REMOVE_ON_DOUBT,
        ],
    },
    // Removes the same protection with every heartbeat joined: the commit succeeds, and its answer is lost.
    Control { name: "remove-on-doubt", breaks: Some("3"), scenario: Some(LOST_ANSWERS), edits: &[REMOVE_ON_DOUBT] },
    // The event of a completed export is recorded by its commit, before the file has its name.
    Control {
        name: "told-at-the-commit",
        breaks: Some("11"),
        scenario: Some(USUAL),
        edits: &[r#"src/store/commit.rs
-        remember_masks(conn, commits).await?;
+        sqlx::query(
+            "insert into cdc_export.deliveries (id, job, endpoint, event)
+             values (gen_random_uuid(), $1, 'receiver', 'completed') on conflict do nothing",
+        )
+        .bind(lease.id().as_uuid())
+        .execute(&mut *conn)
+        .await?;
+        remember_masks(conn, commits).await?;"#],
    },
    // The delivery has a transaction of its own. A process that dies between the two transactions never inserts it.
    Control {
        name: "told-apart",
        breaks: Some("11"),
        scenario: Some(LOST_ANSWERS),
        edits: &["src/store/transitions.rs
-            false => self.transaction(async |tx| transition(tx, &self.listeners, statement).await).await?,
+            false => {
+                let rows = self.transaction(async |tx| transition(tx, &[], statement).await).await?;
+                self.with(async |conn| plan_deliveries(conn, &self.listeners, &rows).await).await?;
+                rows
+            }"],
    },
    // The service waits for a silent reader as long as leader and heartbeat live. The job never ends.
    Control {
        name: "no-look-at-readers",
        breaks: Some("9"),
        scenario: Some(SILENT_READERS),
        edits: &["crates/cdc-capture/src/session.rs
-            Activity::Listens | Activity::Gone => quiet >= answer_timeout(lease),
+            Activity::Listens | Activity::Gone => quiet >= 1_000 * answer_timeout(lease),"],
    },
];

/// Runs one control or all. Returns false if a control was not detected, or `nothing` caused a violation.
pub(crate) async fn run(seed: u64, only: Option<&str>, store: Option<Bucket>) -> Result<bool> {
    require_applicable(builds::tree())?;
    let controls = if store.is_some() { IN_A_BUCKET } else { IN_A_FOLDER };
    let chosen: Vec<_> = controls.iter().filter(|control| only.is_none_or(|name| name == control.name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = controls.iter().map(|control| control.name).collect();
        bail!("there is no such control; there are: {}", names.join(", "));
    }
    let mut all_found_out = true;
    for control in chosen {
        let binary = build(control.edits).await.with_context(|| control.name)?;
        let found_out = is_found_out(control, &binary, seed, store.as_ref()).await?;
        println!("control {}: {}", control.name, if found_out { "as it must be" } else { "NOT AS IT MUST BE" });
        all_found_out &= found_out;
    }
    println!("{}", if all_found_out { "every control is as it must be" } else { "NOT PASSED" });
    Ok(all_found_out)
}

async fn is_found_out(control: &Control, binary: &Path, seed: u64, store: Option<&Bucket>) -> Result<bool> {
    let Some(scenario) = control.scenario else {
        let broken = file_order::check(binary, reachable_folder()?.path()).await?;
        println!("{broken:?}");
        return Ok(control.breaks.is_some_and(|rule| broken.iter().any(|line| line.contains(rule))));
    };
    // A missing protection does harm only at a moment that not every plan hits. So the control tries three plans.
    for seed in seed..seed + 3 {
        let trial = Trial {
            seed,
            failpoints: Vec::new(),
            debug: binary.to_owned(),
            struck: binary.to_owned(),
            plan: scenario(seed, place::replicas(store)),
            ends_with: control.breaks,
            store: store.cloned(),
            clock: None,
            moves: Vec::new(),
        };
        let folder = reachable_folder()?;
        let (report, counts) = trial.run(folder.path()).await?;
        println!("control {} with seed {seed}: {}", control.name, counts.text());
        print_violations(&report, 1);
        if control.breaks.map_or(!report.is_red(), |invariant| report.has(invariant)) {
            return Ok(true);
        }
        println!("logs and files: {}", folder.keep().display());
        if control.breaks.is_none() {
            break;
        }
    }
    Ok(false)
}

/// A text of the source, and its replacement in a control.
struct Edit {
    file: &'static str,
    text: String,
    instead: String,
}

fn parsed(edits: &[&'static str]) -> Vec<Edit> {
    let mut parsed = Vec::<Edit>::new();
    for (file, lines) in edits.iter().filter_map(|edits| edits.split_once('\n')) {
        let lines: Vec<&str> = lines.lines().collect();
        for lines in lines.chunk_by(|one, other| one.starts_with('-') || other.starts_with('+')) {
            let of = |sign| Vec::from_iter(lines.iter().filter_map(|line| line.strip_prefix(sign))).join("\n");
            parsed.push(Edit { file, text: of('-'), instead: of('+') });
        }
    }
    parsed
}

impl Edit {
    fn made_in(&self, content: &str) -> Result<String> {
        let Edit { file, text, instead } = self;
        let found = content.matches(text).count();
        ensure!(found == 1, "the source has moved: {file} has {found} times `{}`", text.trim());
        Ok(content.replace(text, instead))
    }
}

/// Returns an error if the edits of a control don't fit the source tree any more.
pub(crate) fn require_applicable(tree: &Path) -> Result<()> {
    for edit in IN_A_FOLDER.iter().chain(IN_A_BUCKET).flat_map(|control| parsed(control.edits)) {
        let content = std::fs::read_to_string(tree.join(edit.file));
        edit.made_in(&content.with_context(|| format!("the source has moved: there is no {}", edit.file))?)?;
    }
    Ok(())
}

/// Builds the service for a control. All controls share one folder, so each compiles only what differs.
async fn build(edits: &[&'static str]) -> Result<PathBuf> {
    let place = builds::tree().join("target/torture-controls");
    let tree = place.join("tree");
    let target = place.join("target");
    if !target.exists() {
        borrow_dependencies(&target).await?;
        // Copies the tree anew. Otherwise cargo would take the borrowed build for that of the edited tree.
        if tree.exists() {
            std::fs::remove_dir_all(&tree)?;
        }
    }
    copy_tree(builds::tree(), &tree, &parsed(edits)).await?;
    builds::build(&tree, Profile::Debug, Some(&target)).await
}

/// Copies the compiled dependencies of the tree itself. Compiling them again takes minutes.
async fn borrow_dependencies(target: &Path) -> Result<()> {
    let ours = builds::build(builds::tree(), Profile::Debug, None).await?;
    let ours = ours.parent().context("a binary is in a folder")?;
    let theirs = target.join("debug");
    std::fs::create_dir_all(&theirs)?;
    for part in ["build", "deps", ".fingerprint"] {
        // `-p` keeps the modification times, which cargo compares.
        succeed(Command::new("cp").arg("-Rp").arg(ours.join(part)).arg(&theirs)).await?;
    }
    Ok(())
}

/// Main file of this program, which a build needs for its dependencies' features. A control doesn't need its text.
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
            content = edit.made_in(&String::from_utf8(content)?)?.into_bytes();
        }
        // Cargo compares modification times, so an unchanged file keeps its own.
        let copy = to.join(name);
        if std::fs::read(&copy).ok().as_ref() != Some(&content) {
            std::fs::create_dir_all(copy.parent().context("a file has a folder")?)?;
            std::fs::write(&copy, content)?;
        }
    }
    Ok(())
}
