//! The two connections of an export: a leader, which holds the snapshot, and a reader, which reads it.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::reader_slots::ReaderSlots;
use crate::session::Session;
use crate::{Error, Source};
use pg_session::failure::with_timeout;
use pg_session::{require_writable, session_name};

/// A leader and a reader, both connected. A worker has them before it claims a job: leaders that hold snapshots while
/// they wait for readers out of one pool would wait for ever.
#[derive(Debug)]
pub struct ExportConnections {
    pub(super) leader: PgConnection,
    pub(super) leader_session: Session,
    pub(super) reader: PgConnection,
    pub(super) reader_session: Session,
    pub(super) reader_slots: ReaderSlots,
    pub(super) answered_at: Instant,
    opened_at: Instant,
}

/// The age at which connections are replaced. Postgres keeps plans and facts about tables as long as a session lasts.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// The time after its last answer for which a connection counts as working. An attempt notices one that is not.
const TRUSTED: Duration = Duration::from_secs(1);

const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Source {
    pub async fn connections(&self, timeout: Duration) -> Result<ExportConnections, Error> {
        let name = session_name::of_leader();
        let both = async {
            let reader = Session::connect(&self.options, session_name::of_reader(&name)).await?;
            let mut leader = Session::connect(&self.options, name).await?;
            // Planned once for each connection: the leader asks the catalog the same for every job, which takes less
            // than its plan.
            sqlx::raw_sql("-- source.connections.leader\n set plan_cache_mode = force_generic_plan")
                .execute(&mut leader.0)
                .await?;
            Ok::<_, sqlx::Error>((leader, reader))
        };
        let both = with_timeout(timeout, async { both.await.map_err(Error::Unavailable) }, Error::Unavailable).await?;
        let ((leader, leader_session), (reader, reader_session)) = both;
        let reader_slots = self.reader_slots.clone();
        let (answered_at, opened_at) = (Instant::now(), Instant::now());
        Ok(ExportConnections { leader, leader_session, reader, reader_session, reader_slots, answered_at, opened_at })
    }
}

impl ExportConnections {
    /// Returns the name of the session that holds the snapshot and commits the export.
    pub fn session(&self) -> &str {
        &self.leader_session.name
    }

    /// Runs a call over the leader's connection. Watches it over the reader's, which is idle meanwhile.
    pub(super) async fn on_leader<T>(
        &mut self,
        lease: Duration,
        call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.leader_session.watched(&mut self.reader, lease, call(&mut self.leader)).await
    }

    /// Runs a call over the reader's connection. Watches it over the leader's, which is idle meanwhile.
    pub(super) async fn on_reader<T>(
        &mut self,
        lease: Duration,
        call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.reader_session.watched(&mut self.leader, lease, call(&mut self.reader)).await
    }

    /// These connections, if both still answer within `timeout`, can write and are not too old.
    pub async fn checked(mut self, timeout: Duration) -> Option<ExportConnections> {
        if self.opened_at.elapsed() > MAX_AGE {
            self.close().await;
            return None;
        }
        if self.answered_at.elapsed() < TRUSTED {
            return Some(self);
        }
        let both = async { tokio::try_join!(require_writable(&mut self.leader), require_writable(&mut self.reader)) };
        let checks = async { both.await.map_err(Error::Unavailable) };
        with_timeout(timeout, checks, Error::Unavailable).await.ok()?;
        Some(ExportConnections { answered_at: Instant::now(), ..self })
    }

    pub async fn close(self) {
        let close = async { tokio::join!(self.leader.close(), self.reader.close()) };
        // A connection whose goodbye can't be sent ends with its socket.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
    }
}
