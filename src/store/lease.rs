//! The lease of one attempt: what proves the right to write, and how it is extended.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

use crate::connection;
use crate::database::DatabaseId;
use crate::file::hidden::HiddenFile;
use crate::job::{Job, JobId, LeaseToken, Reached};
use crate::store::{Error, Store};

/// The interval at which leases are extended, and expired ones are searched.
pub fn interval(lease: Duration) -> Duration {
    Duration::from_secs(1).min(lease / 3)
}

/// The longest time that one statement may take without an answer: within a lease there is time for another try.
pub fn call_timeout(lease: Duration) -> Duration {
    (lease / 3).min(Duration::from_secs(10))
}

/// The right to one attempt of a job.
#[derive(Debug)]
pub struct Lease {
    /// The job as it was claimed.
    pub job: Job,
    /// The database that the job is in.
    pub database: DatabaseId,
    token: LeaseToken,
}

impl Lease {
    pub(super) fn new(job: Job, database: DatabaseId, token: LeaseToken) -> Lease {
        Lease { job, database, token }
    }

    /// The token that proves the right.
    pub fn token(&self) -> LeaseToken {
        self.token
    }

    /// The file that the attempt writes.
    pub fn hidden_file(&self) -> HiddenFile {
        HiddenFile::of_attempt(&self.database, self.job.id, self.token)
    }
}

/// The result of renewing a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease is extended.
    Held,
    /// The lease is extended, and a client asked to cancel the job.
    CancelAsked,
    /// Another worker has the lease, or the job has ended.
    Lost,
}

/// Renews the lease of one attempt over a connection of its own, so that a busy pool doesn't starve the renewal.
/// Connects for the first renewal, before which a short export has ended.
#[derive(Debug)]
pub struct LeaseRenewer {
    options: PgConnectOptions,
    conn: Option<PgConnection>,
}

impl LeaseRenewer {
    /// Extends a lease and records how far its export is: percent, rows, bytes.
    ///
    /// # Errors
    /// If the database fails or doesn't answer within `timeout`; whether the lease was extended is not known then.
    pub async fn beat(
        &mut self,
        job: JobId,
        token: LeaseToken,
        lease: Duration,
        progress: Reached,
        timeout: Duration,
    ) -> Result<Renewal, Error> {
        // Put back only after an answer: a statement that was given up takes its connection with it.
        let conn = self.conn.take();
        let beat = async {
            let mut conn = match conn {
                Some(conn) => conn,
                None => connection::connect(&self.options).await?,
            };
            let beat = beat(&mut conn, job, token, lease, progress).await?;
            Ok::<_, Error>((conn, beat))
        };
        let answer = tokio::time::timeout(timeout, beat).await;
        let (conn, beat) = answer.map_err(|_| Error::Unavailable(sqlx::Error::PoolTimedOut))??;
        self.conn = Some(conn);
        Ok(beat)
    }
}

async fn beat(
    conn: &mut PgConnection,
    job: JobId,
    token: LeaseToken,
    lease: Duration,
    Reached { percent, rows, bytes }: Reached,
) -> Result<Renewal, Error> {
    let cancel: Option<bool> = sqlx::query_scalar(include_str!("lease/beat.sql"))
        .bind(job.as_uuid())
        .bind(token.as_uuid())
        .bind(lease.as_secs_f64())
        .bind(i16::from(percent))
        .bind(rows as i64)
        .bind(bytes as i64)
        .fetch_optional(conn)
        .await?;
    Ok(match cancel {
        None => Renewal::Lost,
        Some(true) => Renewal::CancelAsked,
        Some(false) => Renewal::Held,
    })
}

impl Store {
    /// A renewer for the lease of one attempt.
    pub fn lease_renewer(&self) -> LeaseRenewer {
        LeaseRenewer { options: (*self.pool.connect_options()).clone(), conn: None }
    }

    /// Extends a lease once more, before a commit that may take a while.
    ///
    /// # Errors
    /// If the database fails; whether the lease was extended is not known then.
    pub async fn extend(&self, lease: &Lease, time: Duration, progress: Reached) -> Result<Renewal, Error> {
        self.with(async |conn| beat(conn, lease.job.id, lease.token, time, progress).await).await
    }
}
