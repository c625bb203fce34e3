//! Renews the lease of an attempt. The token of the lease proves the right to write.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

use crate::job::times::Times;
use crate::job::{Export, LeaseToken};
use crate::store::{Error, Store};
use cdc_capture::Reached;
use cdc_destination::{DatabaseId, HiddenFile};
use cdc_manifest::JobId;

/// The right to one attempt at a job.
#[derive(Debug)]
pub struct Lease {
    /// The exports, in the order of their datasets' names.
    pub exports: Vec<LeasedExport>,
    pub database: DatabaseId,
    /// True if the attempt tries a table that was locked a moment ago.
    pub is_trial: bool,
    pub(super) token: LeaseToken,
}

#[derive(Debug)]
pub struct LeasedExport {
    /// The export as of the claim.
    pub export: Export,
    /// The place of the export in the chain of its lane. `None` if the job has no consumer.
    pub link: Option<ChainLink>,
}

/// The place of an export in the chain of its lane. It stays so until the export is published, because the lane waits
/// for it.
#[derive(Clone, Debug)]
pub struct ChainLink {
    pub number: u64,
    /// The digest of the lane's last manifest. `None` if there is none.
    pub previous: Option<String>,
}

impl Lease {
    pub fn first(&self) -> &Export {
        &self.exports[0].export
    }

    pub fn exports(&self) -> impl Iterator<Item = &Export> {
        self.exports.iter().map(|leased| &leased.export)
    }

    pub fn id(&self) -> JobId {
        self.first().job
    }

    pub fn token(&self) -> LeaseToken {
        self.token
    }

    /// Returns the first hidden file of the export at this place.
    pub fn hidden_file(&self, at: usize) -> HiddenFile {
        HiddenFile::of_attempt(&self.database, self.id(), self.token.as_uuid(), at as u32 + 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    Held,
    /// The lease is extended, and a client requested the cancellation of the job.
    CancelAsked,
    /// Another worker has the lease, or the job has ended.
    Lost,
}

/// Renews the lease of one attempt over a connection of its own, so that a busy pool doesn't delay the renewal.
///
/// Connects at the first renewal. A short export ends before that.
#[derive(Debug)]
pub struct LeaseRenewer {
    options: PgConnectOptions,
    conn: Option<PgConnection>,
    id: JobId,
    token: LeaseToken,
    times: Times,
}

impl LeaseRenewer {
    pub fn job(&self) -> JobId {
        self.id
    }

    /// Extends the lease, and records the progress of the export of the dataset that is read.
    ///
    /// # Errors
    /// If the database fails or doesn't answer in time. The lease may have been extended all the same.
    pub async fn beat(&mut self, progress: (String, Reached)) -> Result<Renewal, Error> {
        // Puts the connection back only after an answer. A dropped statement closes its connection.
        let conn = self.conn.take();
        let beat = async {
            let mut conn = match conn {
                Some(conn) => conn,
                None => pg_session::connect(&self.options).await?,
            };
            let beat = beat(&mut conn, self.id, self.token, self.times.lease, progress).await?;
            Ok::<_, Error>((conn, beat))
        };
        let renewed = tokio::time::timeout(self.times.renewal, beat).await;
        let (conn, beat) = renewed.map_err(|_| Error::Unavailable(sqlx::Error::PoolTimedOut))??;
        self.conn = Some(conn);
        Ok(beat)
    }
}

async fn beat(
    conn: &mut PgConnection,
    id: JobId,
    token: LeaseToken,
    lease: Duration,
    (dataset, Reached { percent, rows, bytes, expected }): (String, Reached),
) -> Result<Renewal, Error> {
    let cancel: Option<bool> = sqlx::query_scalar(include_str!("lease/beat.sql"))
        .bind(id.as_uuid())
        .bind(token.as_uuid())
        .bind(lease.as_secs_f64())
        .bind(i16::from(percent))
        .bind(rows as i64)
        .bind(bytes as i64)
        .bind(dataset)
        .bind(expected.map(|rows| rows as i64))
        .fetch_optional(conn)
        .await?;
    Ok(match cancel {
        None => Renewal::Lost,
        Some(true) => Renewal::CancelAsked,
        Some(false) => Renewal::Held,
    })
}

impl Store {
    pub fn lease_renewer(&self, lease: &Lease, times: Times) -> LeaseRenewer {
        let options = (*self.pool.inner().connect_options()).clone();
        LeaseRenewer { options, conn: None, id: lease.id(), token: lease.token, times }
    }

    /// Extends a lease once more, before a commit that may take a while.
    ///
    /// # Errors
    /// If the database fails. The lease may have been extended all the same.
    pub async fn extend(&self, lease: &Lease, time: Duration, progress: (String, Reached)) -> Result<Renewal, Error> {
        self.with(async |conn| beat(conn, lease.id(), lease.token, time, progress).await).await
    }
}
