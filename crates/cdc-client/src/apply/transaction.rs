//! Applies exports of several tables in one transaction of the target. A single export is a transaction with one
//! member.

use std::sync::Arc;

use sqlx::PgConnection;

use crate::apply::input::Input;
use crate::apply::merge::merge;
use crate::apply::statement::run;
use crate::apply::table::{TargetTable, target_columns};
use crate::apply::{
    Applied, COMMIT, Changes, During, Error, Target, TargetPosition, TargetSettings, alter, load, position,
};
use cdc_manifest::{Chained, Manifest};
use failpoint::failpoint;
use pg_session::failure::SqlFailure;
use pg_session::table_name::Table;

/// The most columns of a table, and so of the temporary one for the rows of an export.
const MOST_COLUMNS: usize = 1600;

/// An export, and the table that it is applied to.
pub(crate) struct MemberExport<'m> {
    pub target: &'m Target,
    pub manifest: &'m Manifest,
    /// The export's files, in their order.
    pub files: Vec<Input>,
}

/// The error of a transaction, which has changed nothing.
#[derive(Debug)]
pub(crate) struct TransactionFailure {
    /// The index of the member that it concerns. `None` if it concerns all of them.
    pub member: Option<usize>,
    pub error: Error,
}

impl From<Error> for TransactionFailure {
    fn from(error: Error) -> TransactionFailure {
        TransactionFailure { member: None, error }
    }
}

/// A member within the transaction, whose position and table are locked.
struct PreparedExport<'m> {
    target_table: TargetTable,
    before: Option<TargetPosition>,
    manifest: &'m Manifest,
    files: Vec<Input>,
    /// The key of its position.
    target: String,
    remarks: Vec<String>,
    changes: Changes,
}

enum Preparation<'m> {
    Ready(Box<PreparedExport<'m>>),
    NotApplied(Applied),
}

/// Applies the exports, unless their tables have them already. All members have the same connections and settings.
/// Returns the outcome of each.
///
/// If a member can't be applied, nothing is: then the others have no outcome, and can be applied without it.
///
/// # Errors
/// If the target refuses an export, or is unavailable. After [`Error::Unavailable`] the exports may have been applied.
/// The next call detects that and doesn't apply them again.
pub(crate) async fn apply(members: Vec<MemberExport<'_>>) -> Result<Vec<Option<Applied>>, TransactionFailure> {
    failpoint!("apply.fetched", Err(Error::refused("failpoint", "apply.fetched").into()));
    let Some(first) = members.first() else { return Ok(Vec::new()) };
    let connections = Arc::clone(&first.target.connections);
    let mut tables = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let table = member.target.table(member.manifest).map_err(|error| of_member(at, error))?;
        if let Some(other) = tables.iter().position(|other| *other == table) {
            let other = &members[other].target.dataset;
            let why = format!("{table} is the table of the dataset {other} already: leave one of them out (--exclude)");
            return Err(of_member(at, Error::refused("another_lane", why)));
        }
        tables.push(table);
    }
    let prepared = connections.transaction(async |mut tx| {
        prepare_schemas(&mut tx, &members, &tables).await?;
        tx.commit().await.during(COMMIT)?;
        Ok(())
    });
    prepared.await?;
    let applied = connections.transaction(async |mut tx| {
        let applied = apply_in(&mut tx, members, &tables).await?;
        if applied.iter().all(|outcome| matches!(outcome, Some(Applied::Done(..)))) {
            failpoint!("apply.applied", Err(Error::refused("failpoint", "apply.applied").into()));
            tx.commit().await.during(COMMIT)?;
            failpoint!("apply.committed", Err(Error::Unavailable(sqlx::Error::PoolClosed).into()));
        } else {
            tx.rollback().await.during("to roll back")?;
        }
        Ok(applied)
    });
    applied.await
}

fn of_member(at: usize, error: Error) -> TransactionFailure {
    TransactionFailure { member: Some(at), error }
}

/// Creates the table of the positions and the schemas of new tables, if they are missing. Needs a transaction of its
/// own, so that first exports of other tables don't wait for this one.
async fn prepare_schemas(
    tx: &mut PgConnection,
    members: &[MemberExport<'_>],
    tables: &[Table],
) -> Result<(), TransactionFailure> {
    position::create_table(tx).await?;
    let new = members.iter().zip(tables).filter(|(member, _)| member.target.read_digest.is_none());
    let mut schemas: Vec<_> = new.filter_map(|(_, table)| table.schema.as_deref()).collect();
    schemas.sort_unstable();
    schemas.dedup();
    for schema in schemas {
        alter::create_schema(tx, schema).await?;
    }
    Ok(())
}

async fn apply_in(
    tx: &mut PgConnection,
    members: Vec<MemberExport<'_>>,
    tables: &[Table],
) -> Result<Vec<Option<Applied>>, TransactionFailure> {
    let settings = members[0].target.settings.clone();
    let mut outcomes: Vec<_> = tables.iter().map(|_| None).collect();
    let mut prepared = Vec::new();
    // Transactions lock the positions and the tables in the same order, so that they don't wait for each other.
    let mut members: Vec<_> = members.into_iter().zip(tables).enumerate().collect();
    members.sort_by_cached_key(|(_, (_, table))| position::target_name(table));
    position::lock_table(tx, "row exclusive").await?;
    for (at, (member, table)) in members {
        match prepare(tx, member, table).await.map_err(|error| of_member(at, error))? {
            Preparation::Ready(member) => prepared.push((at, member)),
            Preparation::NotApplied(outcome) => outcomes[at] = Some(outcome),
        }
    }
    if outcomes.iter().any(Option::is_some) {
        return Ok(outcomes);
    }
    for (at, mut member) in prepared {
        let loaded = member.load(tx, &settings).await;
        if let Err(Error::Sql { cause, .. }) = &loaded
            && SqlFailure::of(cause) == SqlFailure::Duplicate
            && member.manifest.export.export_type != "full"
        {
            let why = format!("full_export_needed: unique values have moved between rows of {}", tables[at]);
            outcomes = tables.iter().map(|_| None).collect();
            outcomes[at] = Some(Applied::NeedsFullExport(why));
            return Ok(outcomes);
        }
        loaded.map_err(|error| of_member(at, error))?;
        let PreparedExport { target_table, manifest, target, remarks, changes, .. } = *member;
        let written = position::write(tx, &target, manifest, &target_table, &settings).await;
        written.map_err(|error| of_member(at, error))?;
        outcomes[at] = Some(Applied::Done(changes, remarks));
    }
    Ok(outcomes)
}

/// Locks the position and the table, or creates the table. Returns an outcome instead if the export can't be applied.
async fn prepare<'m>(tx: &mut PgConnection, member: MemberExport<'m>, table: &Table) -> Result<Preparation<'m>, Error> {
    let MemberExport { target: Target { settings, consumer, dataset, read_digest, .. }, manifest, files } = member;
    let export = &manifest.export;
    if export.columns.len() > MOST_COLUMNS {
        let why = format!(
            "the export {} has {} columns, with `operation` and those of `meta`, and a table of Postgres has at most \
             {MOST_COLUMNS}: leave some out by `columns` of the dataset",
            export.job.id(),
            export.columns.len()
        );
        return Err(Error::refused("too_many_columns", why));
    }
    if export.columns.is_empty() || export.key.is_empty() && export.export_type != "full" {
        let why = format!("the manifest of the export {} lists no columns or no key", export.job.id());
        return Err(Error::refused("changed", why));
    }
    let target = position::target_name(table);
    let before = position::lock(tx, &target, consumer, dataset).await?;
    if let Some(position) = &before {
        position.require_lane(consumer, dataset)?;
        // Only a full export can follow the exports of another database.
        if !settings.adopts {
            position.require_source(&export.source)?;
        }
    }
    // The position has moved. Another process has applied exports, or this process has and lost the answer to its
    // COMMIT.
    let at = before.as_ref().map(|position| &position.digest);
    if at != read_digest.as_ref() || at == Some(&manifest.digest) {
        return Ok(Preparation::NotApplied(Applied::PositionMoved));
    }
    if let Some(why) = export_obstacle(export, before.as_ref(), settings) {
        return Ok(Preparation::NotApplied(Applied::NeedsFullExport(why)));
    }
    let mut remarks = Vec::new();
    let target_table = match TargetTable::lock(tx, table, before.as_ref()).await? {
        Some(target_table) => target_table,
        None => alter::create_table(tx, table, export, settings, &mut remarks).await?,
    };
    if let Some(before) = before.as_ref().filter(|_| export.export_type != "full")
        && let Some(why) = target_table.obstacle(export, before)
    {
        return Ok(Preparation::NotApplied(Applied::NeedsFullExport(format!("full_export_needed: {why}"))));
    }
    let is_gone = |name: &&String| !export.columns.iter().any(|column| column.name == **name);
    let had = before.iter().flat_map(|before| before.details.table.keys());
    for name in had.filter(is_gone).filter(|name| target_table.columns.contains_key(*name)) {
        remarks
            .push(format!("the source has no column {name} any more: the table keeps it, and new rows have no value"));
    }
    let changes = Changes::default();
    let ready = PreparedExport { target_table, before, manifest, files, target, remarks, changes };
    Ok(Preparation::Ready(Box::new(ready)))
}

impl PreparedExport<'_> {
    /// Replaces the rows of the table by those of a full export, or merges the rows of another one.
    async fn load(&mut self, tx: &mut PgConnection, settings: &TargetSettings) -> Result<(), Error> {
        let PreparedExport { target_table, before, manifest, files, remarks, .. } = self;
        let (export, files) = (&manifest.export, std::mem::take(files));
        let columns: Vec<_> = target_columns(export, settings).map(|column| column.name.clone()).collect();
        if export.export_type != "full" {
            alter::add_missing_key(tx, target_table, export).await?;
            let rows = load::into_stage(tx, target_table, export, &columns, files).await?;
            require_rows(export, rows)?;
            failpoint!("apply.staged", Err(Error::refused("failpoint", "apply.staged")));
            self.changes = merge(tx, target_table, export, &columns).await?;
            return Ok(());
        }
        let mut changes = Changes::default();
        if let Some(before) = before {
            // Unlike TRUNCATE, this lets others read the rows of before until the end.
            let delete = format!("delete from only {}", target_table.name);
            changes.deleted = run(tx, "transaction.delete_all", &delete).await.during("to delete the rows")?;
            alter::follow_source(tx, target_table, export, before, settings, remarks).await?;
        }
        failpoint!("apply.staged", Err(Error::refused("failpoint", "apply.staged")));
        changes.written = if columns.len() < export.columns.len() {
            let rows = load::into_stage(tx, target_table, export, &columns, files).await?;
            load::from_stage(tx, target_table, &columns).await?;
            rows
        } else {
            load::copy(tx, &target_table.name, &columns, files).await?
        };
        require_rows(export, changes.written)?;
        alter::add_missing_key(tx, target_table, export).await?;
        self.changes = changes;
        Ok(())
    }
}

/// Returns the reason if this export can't be applied next, so that only a full export in csv can.
fn export_obstacle(export: &Chained, before: Option<&TargetPosition>, settings: &TargetSettings) -> Option<String> {
    let job = export.job.id();
    let needed = |why: String| Some(format!("full_export_needed: {why}"));
    if !["full", "incremental", "delta"].contains(&export.export_type.as_str()) {
        return needed(format!("the export {job} has a type that this version doesn't know"));
    }
    if export.format != "csv" {
        return needed(format!("the export {job} is in {}, and only csv can be applied", export.format));
    }
    if export.is_base() {
        return None;
    }
    let Some(before) = before else {
        return needed(format!("the table has no export yet, and the export {job} is not a full export"));
    };
    if export.previous.as_deref() != Some(&before.digest) {
        return needed(format!("the export {job} doesn't follow the last export of the table"));
    }
    if export.is_by_time() {
        return needed(format!("somebody set the watermark before the export {job}, which may lack rows"));
    }
    // A delta doesn't contain the column's values in unchanged rows.
    let changed = target_columns(export, settings).find(|column| !before.details.columns.contains(column))?;
    needed(format!("the column {} is new, or has another type", changed.name))
}

fn require_rows(export: &Chained, rows: u64) -> Result<(), Error> {
    if export.rows == rows.to_string() {
        return Ok(());
    }
    let (job, said) = (export.job.id(), &export.rows);
    let why = format!("the files of the export {job} have {rows} rows, and its manifest says {said}");
    Err(Error::refused("changed", why))
}
