//! Compares a catalog with the live tables. Finds mismatches, and tables whose changes aren't captured.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sqlx::{PgConnection, PgPool};

use crate::capture::untracking;
use crate::description::{self, TableStatus};
use crate::rights::TableAccess;
use crate::{filter, lag, parallel_apply, relation_locks, rights, role_path, table_schema};
use cdc_dataset::{Capture, Dataset, Fault, Faults, RelationKind, TableSchema};
use pg_session::table_name::Table;

#[derive(Debug, Default)]
pub struct Findings {
    pub faults: Faults,
    /// Faults of datasets that fit their tables: rights that the role or the triggers lack, and tables that Postgres
    /// can't read.
    pub unreadable: Vec<Fault>,
    /// The datasets that fit their tables and need triggers, but whose tables are not in `cdc_export.tracked`.
    pub untracked: Vec<String>,
    /// The datasets whose tables were tracked, and whose changes aren't captured now: a trigger is missing, or the key
    /// differs.
    pub broken: Vec<String>,
    /// Remarks on datasets that fit and can be exported: no index begins with `updated_at`, a table lacks a column that
    /// its pattern masks, or a locked table kept the filter from being tried.
    pub remarks: Vec<Fault>,
    pub without_dataset: Vec<Table>,
    /// Subscriptions that may wait for ever at the dataset's table.
    pub stalling: Vec<Fault>,
}

impl Findings {
    /// Removes what keeps these datasets from being exported. Returns their names.
    pub fn take_out<'a>(&mut self, datasets: impl Iterator<Item = &'a Arc<Dataset>>) -> BTreeSet<String> {
        let names: HashSet<_> = datasets.map(|dataset| dataset.name.as_str()).collect();
        let mut found = BTreeSet::new();
        let Findings { faults: Faults(faults), unreadable, untracked, broken, .. } = self;
        for faults in [faults, unreadable] {
            let taken = faults.extract_if(.., |fault| names.contains(&*fault.dataset));
            found.extend(taken.map(|fault| fault.dataset));
        }
        for uncaptured in [untracked, broken] {
            found.extend(uncaptured.extract_if(.., |name| names.contains(name.as_str())));
        }
        found
    }
}

impl Findings {
    /// Compares a whole catalog with the live tables, and returns what doesn't fit. Takes as many statements for many
    /// datasets as for few, but for those that have a filter.
    pub async fn check(pool: &PgPool, datasets: &[Arc<Dataset>], left_out: &[&Table]) -> Result<Findings, sqlx::Error> {
        let mut conn = pool.acquire().await?;
        let mut found = Findings::default();
        let all: Vec<_> = datasets.iter().map(|dataset| &**dataset).collect();
        let accesses = rights::read_accesses(&mut conn, &all).await?;
        found.unreadable.extend(accesses.iter().filter_map(TableAccess::hidden).cloned());
        let visible = all.iter().copied().zip(&accesses).filter(|(_, access)| access.hidden().is_none());
        let visible: Vec<_> = visible.collect();
        let Faults(faults) = &mut found.faults;
        let fitting = fits(&mut conn, &visible, faults).await?;
        let readable: Vec<_> =
            fitting.iter().filter(|it| it.access.unreadable.is_none()).map(FittingDataset::table).collect();
        for TableAccess { unreadable, unpopulated, .. } in fitting.iter().map(|it| it.access) {
            found.unreadable.extend(unreadable.iter().chain(unpopulated).cloned());
        }
        found.unreadable.extend(role_path::check(&mut conn, &readable).await?);
        found.remarks = without_index(&mut conn, &fitting).await?;
        let lacking = fitting.iter().flat_map(|it| it.schema.missing_masked.iter().map(|name| (it.dataset, name)));
        found.remarks.extend(lacking.map(|(dataset, name)| Fault {
            dataset: dataset.name.clone(),
            member: "mask",
            item: Some(name.clone()),
            why: format!("it has no column `{name}` to mask"),
        }));
        found.remarks.extend(fitting.iter().filter(|it| it.has_untried_filter).map(|it| {
            let why = "its filter was not tried, because the table is locked: the first export tries it".to_owned();
            Fault::of(it.dataset, "filter", why)
        }));
        let by_triggers: Vec<_> = fitting.iter().filter(|it| it.dataset.capture == Capture::Triggers).collect();
        for (n, it) in by_triggers.iter().enumerate() {
            faults.extend(by_triggers[..n].iter().find_map(|other| it.conflict(other)));
        }
        let accesses: Vec<_> = by_triggers.iter().map(|it| it.access).collect();
        let statuses = description::read_statuses(&mut conn, &accesses).await?;
        for (it, status) in by_triggers.iter().zip(statuses) {
            let obstacle = status.log_obstacle();
            let TableStatus { captured, logged_key, uncapturable, .. } = status;
            match logged_key {
                None if uncapturable.is_some() => {
                    found.unreadable.extend(uncapturable.map(|why| Fault::of(it.dataset, "capture", why)));
                }
                None => found.untracked.push(it.dataset.name.clone()),
                Some(_) if obstacle.is_some() => {
                    found.unreadable.extend(obstacle.map(|why| Fault::of(it.dataset, "capture", why)));
                }
                Some(key) if captured && it.schema.has_key(&key) => {}
                Some(_) => found.broken.push(it.dataset.name.clone()),
            }
        }
        let partitioned =
            by_triggers.iter().filter(|it| it.schema.relation == RelationKind::Partitioned).map(|it| it.dataset);
        found.stalling = parallel_apply::read_stalling(&mut conn, &partitioned.collect::<Vec<_>>()).await?;
        found.without_dataset = untracking::without_dataset(&mut conn, datasets, left_out).await?;
        Ok(found)
    }

    /// Compares these datasets with their tables, and with the other datasets that share their triggers, and returns
    /// what doesn't fit. Other faults of those datasets are left out.
    pub async fn check_some(
        pool: &PgPool,
        all: &[Arc<Dataset>],
        datasets: &[Arc<Dataset>],
    ) -> Result<Faults, sqlx::Error> {
        let mut conn = pool.acquire().await?;
        let mut faults = Vec::new();
        let all: Vec<_> = all.iter().map(|dataset| &**dataset).collect();
        let accesses = rights::read_accesses(&mut conn, &all).await?;
        let names: HashSet<_> = datasets.iter().map(|dataset| &dataset.name).collect();
        let (own, others): (Vec<_>, Vec<_>) =
            all.into_iter().zip(&accesses).partition(|(dataset, _)| names.contains(&dataset.name));
        let own = fits(&mut conn, &own, &mut faults).await?;
        let readable: Vec<_> =
            own.iter().filter(|it| it.access.unreadable.is_none()).map(FittingDataset::table).collect();
        faults.extend(role_path::check(&mut conn, &readable).await?);
        let tables: HashSet<_> = own.iter().map(|it| it.schema.table.to_string()).collect();
        let shares = |(_, access): &(&Dataset, &TableAccess)| {
            access.table.as_ref().is_some_and(|table| tables.contains(&table.to_string()))
        };
        let others: Vec<_> = others.into_iter().filter(shares).collect();
        let others = introspect(&mut conn, &others, &mut Vec::new()).await?;
        for it in &own {
            let is_other = |other: &&FittingDataset<'_>| other.dataset.name != it.dataset.name;
            faults.extend(own.iter().filter(is_other).chain(&others).filter_map(|other| it.conflict(other)));
        }
        Ok(Faults(faults))
    }

    pub async fn stalling(pool: &PgPool, datasets: &[Arc<Dataset>]) -> Result<Vec<Fault>, sqlx::Error> {
        let datasets: Vec<_> = datasets.iter().map(|dataset| &**dataset).collect();
        parallel_apply::read_stalling(&mut *pool.acquire().await?, &datasets).await
    }
}

/// Returns a fault for each dataset of which no index begins with `updated_at`: each incremental and delta then reads
/// the whole table.
async fn without_index(conn: &mut PgConnection, fitting: &[FittingDataset<'_>]) -> Result<Vec<Fault>, sqlx::Error> {
    let times = fitting.iter().filter_map(|it| Some((it, it.schema.updated_at.as_ref()?)));
    let times: Vec<_> = times.map(|(it, time)| (it.dataset, &it.schema.table, &*time.name)).collect();
    let columns: Vec<_> = times.iter().map(|(_, table, time)| (*table, *time)).collect();
    let have_index = lag::have_index(conn, &columns).await?;
    let without = times.into_iter().zip(have_index).filter(|(_, has_index)| !has_index);
    let fault = |((dataset, _, time), _): ((&Dataset, _, &str), _)| {
        let why = format!("no index begins with `{time}`: each incremental and delta reads the whole table");
        Fault::of(dataset, "updated_at", why)
    };
    Ok(without.map(fault).collect())
}

/// A dataset that fits its table.
struct FittingDataset<'a> {
    dataset: &'a Dataset,
    access: &'a TableAccess,
    schema: TableSchema,
    /// True if the table was locked when its filter was to be tried.
    has_untried_filter: bool,
}

impl FittingDataset<'_> {
    fn table(&self) -> (&Dataset, &TableSchema) {
        (self.dataset, &self.schema)
    }

    /// Returns a fault if both datasets have triggers on the same table and different keys. The triggers of a table log
    /// one key.
    fn conflict(&self, other: &FittingDataset<'_>) -> Option<Fault> {
        let key =
            |it: &FittingDataset<'_>| it.schema.key.iter().map(|part| part.column.name.to_string()).collect::<Vec<_>>();
        let by_triggers = |it: &FittingDataset<'_>| it.dataset.capture == Capture::Triggers;
        let is_same = self.schema.table == other.schema.table && by_triggers(self) && by_triggers(other);
        let (table, name) = (&self.dataset.table, &other.dataset.name);
        let why = || format!("`{table}` is captured for `{name}` too, which has another key");
        (is_same && key(self) != key(other)).then(|| Fault::of(self.dataset, "key", why()))
    }
}

/// Returns the datasets that fit their tables. Adds each mismatch to the faults.
async fn fits<'a>(
    conn: &mut PgConnection,
    datasets: &[(&'a Dataset, &'a TableAccess)],
    faults: &mut Vec<Fault>,
) -> Result<Vec<FittingDataset<'a>>, sqlx::Error> {
    let mut fitting = Vec::new();
    for it in introspect(conn, datasets, faults).await? {
        match filter::check(conn, it.dataset, &it.schema.table).await {
            Err(cause) if relation_locks::is_conflict(&cause) => {
                fitting.push(FittingDataset { has_untried_filter: true, ..it });
            }
            checked => match checked? {
                Some(fault) => faults.push(fault),
                None => fitting.push(it),
            },
        }
    }
    Ok(fitting)
}

/// Returns the datasets that fit their tables but for their filters, which are not checked. Adds each mismatch to the
/// faults.
async fn introspect<'a>(
    conn: &mut PgConnection,
    datasets: &[(&'a Dataset, &'a TableAccess)],
    faults: &mut Vec<Fault>,
) -> Result<Vec<FittingDataset<'a>>, sqlx::Error> {
    let mut fitting = Vec::new();
    for (&(dataset, access), schema) in datasets.iter().zip(table_schema::introspect_all(conn, datasets).await?) {
        match schema {
            Ok(schema) => fitting.push(FittingDataset { dataset, access, schema, has_untried_filter: false }),
            Err(found) => faults.extend(found.0),
        }
    }
    Ok(fitting)
}
