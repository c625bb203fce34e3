//! Applies exports of several tables in one transaction of the target. A single export is a transaction with one
//! member.
//!
//! The rows of all members are loaded before the first table is changed. Then deleted rows leave the tables from
//! children to parents, and written rows come from parents to children, so that foreign keys hold.

use sqlx::{Connection, PgConnection};

use crate::apply::catalog::target_columns;
use crate::apply::input::Input;
use crate::apply::merge::{Merge, not_written};
use crate::apply::references::{DeletedEarly, References};
use crate::apply::statement::run;
use crate::apply::table::TargetTable;
use crate::apply::{
    Applied, BEGIN, COMMIT, Changes, During, Error, Settings, Target, TargetPosition, alter, load, lock, position,
    search_path,
};
use crate::dataset::Table;
use crate::failpoint;
use crate::manifest::{Chained, Manifest};

const CONSTRAINTS: &str = "to check the constraints";

/// An export, and the table that it is applied to.
pub struct MemberExport<'m> {
    /// The table.
    pub target: &'m Target,
    /// The export.
    pub manifest: &'m Manifest,
    /// The export's files, in their order.
    pub files: Vec<Input>,
}

/// The error of a transaction, which has changed nothing.
#[derive(Debug)]
pub struct TransactionFailure {
    /// The index of the member that it concerns. `None` if it concerns all of them.
    pub member: Option<usize>,
    /// The error.
    pub error: Error,
}

impl From<Error> for TransactionFailure {
    fn from(error: Error) -> TransactionFailure {
        TransactionFailure { member: None, error }
    }
}

/// A member within the transaction.
struct PreparedExport<'m> {
    target_table: TargetTable,
    manifest: &'m Manifest,
    files: Vec<Input>,
    key: String,
    changes: Changes,
}

/// Applies the exports, unless their tables have them already. All members have the same connections and settings.
/// Returns the outcome of each.
///
/// If a member can't be applied, nothing is: then the others have no outcome, and can be applied without it.
///
/// # Errors
/// If the target refuses an export, or is unavailable. After [`Error::Unavailable`] the exports may have been applied.
/// The next call detects that and doesn't apply them again.
pub async fn apply(members: Vec<MemberExport<'_>>) -> Result<Vec<Option<Applied>>, TransactionFailure> {
    failpoint!("apply.fetched", Err(Error::refused("failpoint", "apply.fetched").into()));
    let Some(first) = members.first() else { return Ok(Vec::new()) };
    let connections = &first.target.connections;
    let mut tables = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let table = member.target.table(member.manifest).map_err(|error| of_member(at, error))?;
        if let Some(other) = tables.iter().position(|other| *other == table) {
            let why = format!("{table} is the table of the dataset {} already", members[other].target.dataset);
            return Err(of_member(at, Error::refused("another_lane", why)));
        }
        tables.push(table);
    }
    let mut conn = connections.take().await?;
    let mut tx = conn.begin().await.during(BEGIN)?;
    let process = lock::process(&mut tx).await?;
    lock::name_holders(connections, process, prepare_schemas(&mut tx, &members, &tables)).await?;
    tx.commit().await.during(COMMIT)?;
    let mut tx = conn.begin().await.during(BEGIN)?;
    let process = lock::process(&mut tx).await?;
    let applied = lock::name_holders(connections, process, apply_in(&mut tx, members, &tables)).await?;
    if applied.iter().all(|outcome| matches!(outcome, Some(Applied::Done(..)))) {
        failpoint!("apply.applied", Err(Error::refused("failpoint", "apply.applied").into()));
        tx.commit().await.during(COMMIT)?;
        failpoint!("apply.committed", Err(Error::Unavailable(sqlx::Error::PoolClosed).into()));
    } else {
        tx.rollback().await.during("to roll back")?;
    }
    connections.keep(conn);
    Ok(applied)
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

/// Applies the exports within a transaction, and moves the positions.
async fn apply_in(
    tx: &mut PgConnection,
    members: Vec<MemberExport<'_>>,
    tables: &[Table],
) -> Result<Vec<Option<Applied>>, TransactionFailure> {
    let settings = members[0].target.settings.clone();
    let (mut outcomes, mut prepared) = (Vec::new(), Vec::new());
    // Transactions lock the positions and the tables in the same order, so that they don't wait for each other.
    let mut members: Vec<_> = members.into_iter().zip(tables).enumerate().collect();
    members.sort_by_cached_key(|(_, (_, table))| position::target_name(table));
    position::lock_table(tx, "row exclusive").await?;
    for (at, (member, table)) in members {
        let failed = |error| of_member(at, error);
        match prepare(tx, &member, table).await.map_err(failed)? {
            Ok(target_table) => {
                let MemberExport { manifest, files, .. } = member;
                let (key, changes) = (position::target_name(table), Changes::default());
                prepared.push((at, PreparedExport { target_table, manifest, files, key, changes }));
            }
            Err(obstacle) => outcomes.push((at, obstacle)),
        }
    }
    if !outcomes.is_empty() {
        let mut all: Vec<_> = (0..tables.len()).map(|_| None).collect();
        outcomes.into_iter().for_each(|(at, obstacle)| all[at] = Some(obstacle));
        return Ok(all);
    }
    let references = References::read(tx, prepared.iter().map(|(_, member)| member.target_table.oid).collect()).await?;
    for (at, (index, member)) in prepared.iter().enumerate() {
        if member.target_table.is_replaced && references.are_in_the_way(at) {
            let why = format!(
                "foreign keys reference {}, whose rows can only be replaced, since the export has no key: drop these, or make them \
                 `deferrable` without an action; or give the source's table a key",
                member.target_table.table
            );
            return Err(of_member(*index, Error::refused("referenced", why)));
        }
    }
    truncate(tx, &mut prepared, &references).await?;
    for (at, member) in &mut prepared {
        member.load(tx, &settings.trusted_owners).await.map_err(|error| of_member(*at, error))?;
    }
    failpoint!("apply.staged", Err(Error::refused("failpoint", "apply.staged").into()));
    search_path::use_trigger_search_path(tx, &settings.trusted_owners).await?;
    run(tx, "transaction.defer", "set constraints all deferred").await.during(CONSTRAINTS)?;
    let merged = async {
        merge(tx, &mut prepared, &references).await?;
        let checked = run(tx, "transaction.check", "set constraints all immediate").await;
        checked.map_err(|cause| TransactionFailure::from(not_written(CONSTRAINTS, cause)))
    };
    let merged = merged.await;
    if let ([(_, only)], Err(failure)) = (&*prepared, &merged)
        && only.manifest.export.export_type == "incremental"
        && failure.error.is_of_unique_values()
    {
        let why = "unique_values: an incremental export doesn't delete the rows that had the values of others before";
        return Ok(vec![Some(Applied::NeedsFullExport(why.to_owned()))]);
    }
    merged?;
    search_path::use_own_search_path(tx).await?;
    for (at, PreparedExport { target_table, manifest, key, .. }) in &prepared {
        let written = position::write(tx, key, manifest, target_table, settings.deleted.as_deref()).await;
        written.map_err(|error| of_member(*at, error))?;
    }
    prepared.sort_by_key(|(at, _)| *at);
    let done =
        |(_, member): (usize, PreparedExport<'_>)| Some(Applied::Done(member.changes, member.target_table.remarks));
    Ok(prepared.into_iter().map(done).collect())
}

/// Locks the position and prepares the table. Returns an outcome instead if the export can't be applied.
async fn prepare(
    tx: &mut PgConnection,
    member: &MemberExport<'_>,
    table: &Table,
) -> Result<Result<TargetTable, Applied>, Error> {
    let MemberExport { target: Target { settings, consumer, dataset, read_digest, .. }, manifest, .. } = member;
    let export = &manifest.export;
    let before = position::lock(tx, &position::target_name(table), consumer, dataset).await?;
    if let Some(position) = &before {
        position.require_lane(consumer, dataset)?;
        position.require_source(&export.source)?;
    }
    // The position has moved. Another process has applied exports, or this process has and lost the answer to its
    // COMMIT.
    let at = before.as_ref().map(|position| &position.digest);
    if at != read_digest.as_ref() || at == Some(&manifest.digest) {
        return Ok(Err(Applied::PositionMoved));
    }
    if let Some(why) = export_obstacle(export, before.as_ref(), settings) {
        return Ok(Err(Applied::NeedsFullExport(why)));
    }
    let target_table = match TargetTable::prepare(tx, table, manifest, before.as_ref(), settings).await {
        Err(removed @ Error::ColumnRemoved(_)) => return Ok(Err(Applied::NeedsFullExport(removed.to_string()))),
        target_table => target_table?,
    };
    Ok(match table_obstacle(export, before.as_ref(), &target_table) {
        Some(why) => Err(Applied::NeedsFullExport(why)),
        None => Ok(target_table),
    })
}

/// Empties the tables whose rows are all replaced. One statement may empty tables that reference each other. A table
/// that others reference is merged.
async fn truncate(
    tx: &mut PgConnection,
    members: &mut [(usize, PreparedExport<'_>)],
    references: &References,
) -> Result<(), Error> {
    let replaced = members.iter().enumerate().filter(|(_, (_, member))| member.may_truncate()).map(|(at, _)| at);
    let truncatable = references.truncatable(&replaced.collect());
    let are_empty = members.iter().all(|(_, member)| member.target_table.is_empty || !member.may_truncate());
    let mut names = Vec::new();
    for (at, (_, member)) in members.iter_mut().enumerate() {
        match truncatable.contains(&at) {
            true => names.push(&*member.target_table.table),
            false => member.target_table.truncates = false,
        }
    }
    if are_empty || names.is_empty() {
        return Ok(());
    }
    let truncate = format!("truncate {}", names.join(", "));
    run(tx, "transaction.truncate", &truncate).await.map(drop).during("to empty a table")
}

/// Changes the rows of all tables.
async fn merge(
    tx: &mut PgConnection,
    members: &mut [(usize, PreparedExport<'_>)],
    references: &References,
) -> Result<(), TransactionFailure> {
    let order = references.parents_first();
    for at in order.iter().rev() {
        let (index, member) = &mut members[*at];
        let deleted = match member.merge() {
            None => member.target_table.delete_all(tx).await,
            Some(merge) if merge.marks_deletions() => merge.delete_early(tx, DeletedEarly::All).await,
            Some(merge) => merge.delete_early(tx, references.deleted_early(*at)).await,
        };
        member.changes.deleted = deleted.map_err(|error| of_member(*index, error))?;
    }
    for at in &order {
        let (index, member) = &mut members[*at];
        let written = match member.merge() {
            Some(merge) => merge.write(tx, references.is_referenced(*at)).await,
            None => member.fill(tx).await,
        };
        member.changes.written = written.map_err(|error| of_member(*index, error))?;
    }
    for at in order.into_iter().rev().filter(|at| references.is_referenced(*at)) {
        let (index, member) = &mut members[at];
        let Some(merge) = member.merge() else { continue };
        member.changes.deleted += merge.delete(tx).await.map_err(|error| of_member(*index, error))?;
    }
    Ok(())
}

impl PreparedExport<'_> {
    /// Returns true if the export's rows replace all rows of the table.
    fn replaces_all(&self) -> bool {
        self.target_table.replaces_all(self.manifest)
    }

    fn may_truncate(&self) -> bool {
        self.target_table.may_truncate(self.manifest)
    }

    /// Returns the statements that merge the rows. Returns `None` if they replace all rows of the table.
    fn merge(&self) -> Option<Merge<'_>> {
        (!self.replaces_all()).then(|| Merge::new(&self.target_table, self.manifest))
    }

    /// Loads the rows that are to be merged into the stage.
    async fn load(&mut self, tx: &mut PgConnection, trusted: &[String]) -> Result<(), Error> {
        if self.replaces_all() && !self.target_table.needs_stage() {
            return Ok(());
        }
        let files = std::mem::take(&mut self.files);
        let rows = load::into_stage(tx, &self.target_table, self.manifest, files, trusted).await?;
        require_rows(&self.manifest.export, rows)
    }

    /// Loads the rows into the empty table. Returns the number of rows.
    async fn fill(&mut self, tx: &mut PgConnection) -> Result<u64, Error> {
        let TargetTable { table, columns, .. } = &self.target_table;
        let rows = if self.target_table.needs_stage() {
            load::from_stage(tx, &self.target_table).await?
        } else {
            load::copy(tx, table, columns, std::mem::take(&mut self.files)).await?
        };
        require_rows(&self.manifest.export, rows)?;
        self.target_table.add_missing_key(tx).await?;
        Ok(rows)
    }
}

/// Returns the reason if this export can't be applied next, so that only a full export in csv can.
fn export_obstacle(export: &Chained, before: Option<&TargetPosition>, settings: &Settings) -> Option<String> {
    let job = &export.job;
    if !["full", "incremental", "delta"].contains(&export.export_type.as_str()) {
        return Some(format!("format: the export {job} has a type that this version doesn't know"));
    }
    if export.format != "csv" {
        return Some(format!("format: the export {job} is in {}, and only csv can be applied", export.format));
    }
    if export.is_base() {
        return None;
    }
    let Some(before) = before else {
        return Some(format!("gap: the table has no export yet, and the export {job} is not a full export"));
    };
    if export.previous.as_deref() != Some(&before.digest) {
        return Some(format!("gap: the export {job} doesn't follow the last export of the table"));
    }
    // A delta doesn't contain the column's values in unchanged rows.
    let changed = target_columns(export, settings).find(|column| !before.details.columns.contains(column))?;
    Some(format!("schema_changed: the column {} is new, or has another type", changed.name))
}

/// Returns the reason if the state of the table allows only a full export.
fn table_obstacle(export: &Chained, before: Option<&TargetPosition>, target_table: &TargetTable) -> Option<String> {
    if export.export_type == "full" {
        return None;
    }
    let table = &target_table.table;
    if before.is_some_and(|before| before.details.oid != target_table.oid) {
        return Some(format!(
            "target_changed: {table} is another table than the one to which the earlier exports were applied"
        ));
    }
    // A column that was removed and added again lacks the values of unchanged rows.
    let is_other = |(name, number): &(&String, &i16)| {
        before.is_some_and(|before| before.details.numbers.get(*name).is_some_and(|had| had != *number))
    };
    if let Some((name, _)) = target_table.numbers.iter().find(is_other) {
        return Some(format!("target_changed: somebody has removed the column {name} of {table}, and added it again"));
    }
    // Rows that are not in the export would stay in the table.
    let has_others = export.is_base() && !target_table.is_empty;
    has_others.then(|| {
        format!("target_changed: {table} has rows already, and the export {} is not a full export", export.job)
    })
}

/// Returns an error if the number of rows differs from the manifest.
fn require_rows(export: &Chained, rows: u64) -> Result<(), Error> {
    if export.rows == rows.to_string() {
        return Ok(());
    }
    let why = format!("the files of the export {} have {rows} rows, and its manifest says {}", export.job, export.rows);
    Err(Error::refused("changed", why))
}
