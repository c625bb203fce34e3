//! Limits the number of connections, so that clients that hang cannot block other clients or a health check.
//!
//! A connection is *idle* if it has no open request, or only a request to a route that needs no key. The service always
//! accepts a new connection. If the maximum of idle connections is reached, the service closes an idle connection of
//! the address that has most.
//!
//! A connection is *active* while it has an open request that passed access control. Active connections are never
//! closed in favor of other connections. Therefore their number is limited: in total, per address and per key.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::Extension;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http::access::{Caller, is_open};
use crate::http::code::Code;
use crate::http::problem::Problem;
use crate::http::rate::client_network;
use crate::key::Prefix;

/// Maximum number of active connections. A higher number has no benefit: all of them share a few connections to
/// Postgres.
const MAX_ACTIVE: usize = 1_000;
/// File descriptors reserved for other purposes: connections to Postgres and files being written.
const OTHER_DESCRIPTORS: usize = 250;
/// Minimum time before a new connection or a request on an idle connection may be closed in favor of another
/// connection.
const GRACE_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum time that a request waits for the slot of an active connection.
const SLOT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Maximum numbers of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    idle: usize,
    active: usize,
    active_per_address: usize,
    active_per_key: usize,
}

impl ConnectionLimits {
    /// Returns the limits of a process with at most `max` file descriptors: 1,000 idle and 1,000 active connections,
    /// or fewer if there are not enough descriptors.
    ///
    /// One address may have three quarters of the active connections. All clients behind a proxy share its address, and
    /// one quarter remains for other clients. One key may have half of the active connections from all addresses
    /// together, because all keys behind a proxy share one address.
    pub fn for_descriptors(most: u64) -> ConnectionLimits {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // An active connection may need a file descriptor besides its socket. An idle connection needs only its socket.
        let share = (most.saturating_sub(OTHER_DESCRIPTORS) / 3).clamp(16, MAX_ACTIVE);
        ConnectionLimits { idle: share, active: share, active_per_address: share / 4 * 3, active_per_key: share / 2 }
    }
}

/// The open connections of this process.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: ConnectionLimits,
    active_slots: Arc<Semaphore>,
    per_address: SlotLimits<IpAddr>,
    per_key: SlotLimits<Prefix>,
    idle: Mutex<IdleConnections>,
    idle_changed: Notify,
}

#[derive(Debug, Default)]
struct IdleConnections {
    /// Ordered by a number that increases each time a connection becomes idle.
    by_age: BTreeMap<u64, IdleConnection>,
    next: u64,
}

#[derive(Debug)]
struct IdleConnection {
    owner: IpAddr,
    /// The connection is not closed in favor of another one before this time.
    grace_ends: Instant,
    closed: CancellationToken,
}

impl IdleConnections {
    /// Closes the oldest idle connection of the address that has most. Connections within their grace time are closed
    /// only if one address has more than half of all idle connections.
    ///
    /// Returns `Err` with the end of the first grace time if all connections are within theirs.
    fn close_one(&mut self) -> Result<(), Instant> {
        let now = Instant::now();
        let is_closable = |connection: &IdleConnection| connection.grace_ends <= now;
        let flood = self
            .busiest_address(|_| true)
            .filter(|(_, number)| *number > self.by_age.len() / 2)
            .map(|(owner, _)| owner);
        let most = self.busiest_address(is_closable).map(|(owner, _)| owner);
        let mut by_age = self.by_age.iter();
        let oldest = match (most, flood) {
            (Some(owner), _) => by_age.find(|(_, connection)| connection.owner == owner && is_closable(connection)),
            // Otherwise an address that connects faster than its grace times end would block all other clients.
            (None, Some(owner)) => by_age.find(|(_, connection)| connection.owner == owner),
            (None, None) => return Err(by_age.map(|(_, connection)| connection.grace_ends).min().unwrap_or(now)),
        };
        if let Some(connection) = oldest.map(|(number, _)| *number).and_then(|number| self.by_age.remove(&number)) {
            connection.closed.cancel();
        }
        Ok(())
    }

    /// Returns the address with the most matching connections, and their number. If several addresses have the same
    /// number, returns the one with the oldest connection.
    fn busiest_address(&self, matches: impl Fn(&IdleConnection) -> bool) -> Option<(IpAddr, usize)> {
        let mut numbers = HashMap::<IpAddr, (usize, Reverse<u64>)>::new();
        for (age, connection) in self.by_age.iter().filter(|(_, connection)| matches(connection)) {
            numbers.entry(connection.owner).or_insert((0, Reverse(*age))).0 += 1;
        }
        let most = numbers.into_iter().max_by_key(|(_, number)| *number);
        most.map(|(owner, (number, _))| (owner, number))
    }
}

impl Connections {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Connections> {
        let active_slots = Arc::new(Semaphore::new(limits.active));
        Arc::new(Connections {
            limits,
            active_slots,
            per_address: SlotLimits::new(limits.active_per_address),
            per_key: SlotLimits::new(limits.active_per_key),
            idle: Mutex::default(),
            idle_changed: Notify::new(),
        })
    }

    /// Accepts a new connection from an address. If the maximum is reached, closes an idle connection first.
    ///
    /// Waits only if all idle connections are new and no address has more than half of them, at most half a second.
    pub(crate) async fn admit(self: &Arc<Connections>, address: IpAddr) -> Arc<Connection> {
        loop {
            let changed = self.idle_changed.notified();
            let grace_ends = {
                let mut idle = self.idle();
                let full = idle.by_age.len() >= self.limits.idle;
                match if full { idle.close_one() } else { Ok(()) } {
                    Ok(()) => break,
                    Err(until) => until,
                }
            };
            let _ = tokio::time::timeout_at(grace_ends, changed).await;
        }
        let connection = Connection {
            owner: client_network(address),
            connections: Arc::clone(self),
            closed: CancellationToken::new(),
            state: Mutex::new(ConnectionState::New),
        };
        connection.set_idle(GRACE_TIMEOUT);
        Arc::new(connection)
    }

    /// Waits for the slot of an active connection: one of the total, one of the address and, with a key, one of the
    /// key.
    async fn acquire_slot(&self, owner: IpAddr, key: Option<&Prefix>) -> Result<ActiveSlot, Problem> {
        let of_key = key.map(|key| self.per_key.semaphore(key));
        let of_address = self.per_address.semaphore(&owner);
        let all = async {
            // The slot of the key is acquired first. A request that waits for it leaves the slots of its address to
            // others.
            let of_key = match of_key {
                Some(of_key) => Some(of_key.acquire_owned().await.ok()?),
                None => None,
            };
            let of_address = of_address.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.active_slots).acquire_owned().await.ok()?;
            Some(ActiveSlot { _of_key: of_key, _of_address: of_address, _of_all: of_all })
        };
        let slot = tokio::time::timeout(SLOT_TIMEOUT, all).await;
        let refused = || {
            Problem::new(
                Code::TooManyConnections,
                "too many concurrent requests, with this key, from this address or in total",
            )
        };
        slot.ok().flatten().ok_or_else(refused)
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Partial limits: each address, or each key, may have at most `most` slots.
#[derive(Debug)]
struct SlotLimits<T> {
    max: usize,
    semaphores: Mutex<HashMap<T, Weak<Semaphore>>>,
}

impl<T: Hash + Eq + Clone> SlotLimits<T> {
    fn new(max: usize) -> SlotLimits<T> {
        SlotLimits { max, semaphores: Mutex::default() }
    }

    fn semaphore(&self, owner: &T) -> Arc<Semaphore> {
        let mut semaphores = self.semaphores.lock().unwrap_or_else(PoisonError::into_inner);
        match semaphores.get(owner).and_then(Weak::upgrade) {
            Some(semaphore) => semaphore,
            None => {
                semaphores.retain(|_, semaphore| semaphore.strong_count() > 0);
                let semaphore = Arc::new(Semaphore::new(self.max));
                semaphores.insert(owner.clone(), Arc::downgrade(&semaphore));
                semaphore
            }
        }
    }
}

/// Slot of an active connection; dropping it releases the slot.
#[derive(Debug)]
struct ActiveSlot {
    _of_key: Option<OwnedSemaphorePermit>,
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum ConnectionState {
    New,
    /// The key of the connection in [`IdleConnections`].
    Idle(u64),
    Active {
        _slot: ActiveSlot,
    },
}

/// A client's connection and its current state.
#[derive(Debug)]
pub(crate) struct Connection {
    owner: IpAddr,
    connections: Arc<Connections>,
    closed: CancellationToken,
    state: Mutex<ConnectionState>,
}

impl Connection {
    /// Returns when the connection must be closed in favor of another one.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Marks the start of a request. The connection stays idle until the request passes access control.
    pub(crate) fn begin_request(&self) {
        self.set_idle(GRACE_TIMEOUT);
    }

    /// Marks the end of a response, complete or not. The connection waits for its next request and may be closed.
    pub(crate) fn end_request(&self) {
        self.set_idle(Duration::ZERO);
        // A new connection may be waiting for a connection that can be closed.
        self.connections.idle_changed.notify_waiters();
    }

    fn set_idle(&self, grace: Duration) {
        let mut state = self.state();
        let mut idle = self.connections.idle();
        if let ConnectionState::Idle(number) = *state
            && idle.by_age.remove(&number).is_none()
        {
            // This connection was already selected for closing.
            return;
        }
        let number = idle.next;
        idle.next += 1;
        let connection =
            IdleConnection { owner: self.owner, grace_ends: Instant::now() + grace, closed: self.closed.clone() };
        idle.by_age.insert(number, connection);
        *state = ConnectionState::Idle(number);
    }

    /// Marks the connection as active as soon as a slot is available, after its request passed access control.
    async fn activate(&self, key: Option<&Prefix>) -> Result<(), Problem> {
        let slot = self.connections.acquire_slot(self.owner, key).await?;
        let mut state = self.state();
        if let ConnectionState::Idle(number) = *state {
            self.connections.idle().by_age.remove(&number);
            self.connections.idle_changed.notify_waiters();
        }
        *state = ConnectionState::Active { _slot: slot };
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let ConnectionState::Idle(number) = *self.state() {
            self.connections.idle().by_age.remove(&number);
            self.connections.idle_changed.notify_waiters();
        }
    }
}

/// Layer that acquires a slot for each request that passed access control.
pub(crate) async fn acquire_active_slot(
    connection: Option<Extension<Arc<Connection>>>,
    caller: Option<Extension<Caller>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(Extension(connection)) = connection
        && !is_open(path.as_ref().map_or("", MatchedPath::as_str))
    {
        connection.activate(caller.as_ref().and_then(|Extension(caller)| caller.key())).await?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { idle: 3, active: 4, active_per_address: 3, active_per_key: 2 };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn limits_fit_into_the_file_descriptors() {
        let ample = ConnectionLimits { idle: 1_000, active: 1_000, active_per_address: 750, active_per_key: 500 };
        assert_eq!(ConnectionLimits::for_descriptors(1 << 20), ample);
        assert_eq!(ConnectionLimits::for_descriptors(u64::MAX).active, 1_000);
        let scarce = ConnectionLimits::for_descriptors(1_024);
        assert_eq!(scarce, ConnectionLimits { idle: 258, active: 258, active_per_address: 192, active_per_key: 129 });
        assert!(scarce.idle + 2 * scarce.active + OTHER_DESCRIPTORS <= 1_024);
        assert_eq!(ConnectionLimits::for_descriptors(0).active_per_address, 12);
    }

    #[tokio::test]
    async fn new_connection_replaces_the_oldest_idle_one_of_the_busiest_address() {
        let connections = Connections::new(LIMITS);
        let other = connections.admit(address(1)).await;
        let first = connections.admit(address(2)).await;
        let second = connections.admit(address(2)).await;
        for connection in [&other, &first, &second] {
            connection.end_request();
        }
        first.end_request();
        let _new = connections.admit(address(3)).await;
        assert_eq!(second.closed().now_or_never(), Some(()), "idle for the longest time");
        assert_eq!((other.closed().now_or_never(), first.closed().now_or_never()), (None, None));
        second.end_request();
        assert_eq!(connections.idle().by_age.len(), 3, "a closed connection does not become idle again");
    }

    #[tokio::test]
    async fn new_connections_have_a_grace_time() {
        let connections = Connections::new(LIMITS);
        let fresh = [connections.admit(address(1)).await, connections.admit(address(4)).await];
        let resting = connections.admit(address(2)).await;
        resting.end_request();
        let _new = connections.admit(address(1)).now_or_never().expect("one is idle");
        assert_eq!(resting.closed().now_or_never(), Some(()));
        let third = connections.admit(address(3)).await;
        assert_eq!(
            fresh.each_ref().map(|connection| connection.closed().now_or_never().is_some()),
            [true, false],
            "two of three"
        );

        let connections = Connections::new(LIMITS);
        let fresh = [1, 2, 3].map(|last| connections.admit(address(last)).now_or_never().unwrap());
        let mut waits = std::pin::pin!(connections.admit(address(4)));
        assert!((&mut waits).now_or_never().is_none(), "no address has more than half");
        fresh[1].end_request();
        let begun = Instant::now();
        waits.await;
        assert!(begun.elapsed() < GRACE_TIMEOUT / 2, "an idle connection makes room");
        assert_eq!(fresh.map(|connection| connection.closed().now_or_never().is_some()), [false, true, false]);
        drop(third);
    }

    #[tokio::test]
    async fn flood_of_one_address_does_not_delay_others() {
        let connections = Connections::new(LIMITS);
        let other = connections.admit(address(2)).await;
        let mut flood = Vec::new();
        for _ in 0..1_000 {
            flood.push(connections.admit(address(1)).now_or_never().expect("it waits for nothing"));
        }
        let late = connections.admit(address(3)).now_or_never().expect("it waits for nothing");
        assert_eq!([&other, &late].map(|connection| connection.closed().now_or_never()), [None, None]);
        let stay = flood.iter().filter(|connection| connection.closed().now_or_never().is_none()).count();
        assert_eq!(stay, 1);
    }

    #[tokio::test]
    async fn active_connections_stay_open_and_one_address_cannot_have_all_slots() {
        let connections = Connections::new(LIMITS);
        let mut active = Vec::new();
        for _ in 0..3 {
            let connection = connections.admit(address(1)).await;
            connection.activate(None).await.unwrap();
            active.push(connection);
        }
        let late = connections.admit(address(1)).await;
        assert_eq!(late.activate(None).await.unwrap_err().code(), "too_many_connections");
        let other = connections.admit(address(2)).await;
        other.activate(None).await.unwrap();
        active.pop();
        late.activate(None).await.unwrap();
        late.end_request();
        assert!(active.iter().all(|connection| connection.closed().now_or_never().is_none()));
        assert_eq!(connections.active_slots.available_permits(), 1);
        drop((late, active));
        assert_eq!(connections.idle().by_age.len(), 0);
    }
}
