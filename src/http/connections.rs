//! Limits the open connections, so that clients that hang keep nobody else out, least of all a health check.
//!
//! A connection is *idle* while it has no request under way, or only one that needs no key. A new connection always gets in. If the
//! places of idle connections are taken, an idle connection of the address with the most is closed for the new one.
//!
//! A connection is *active* while access control has let its request in. An active connection is never closed for another one, so their
//! number is limited: of all, of one address, and of one key.

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

/// The most active connections. They share a few connections to Postgres, so more are of no use.
const MAX_ACTIVE: usize = 1_000;
/// File descriptors kept for connections to Postgres and for files that are being written.
const OTHER_DESCRIPTORS: usize = 250;
/// How long a new connection, or an idle one with a new request, is not closed for another connection.
const GRACE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a request waits for its connection to become active.
const ACTIVE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The limits on the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    idle: usize,
    active: usize,
    active_of_address: usize,
    active_of_key: usize,
}

impl ConnectionLimits {
    /// Returns the limits of a process that may have `most` file descriptors: 1,000 idle and 1,000 active connections, or fewer if there
    /// are fewer descriptors.
    ///
    /// One address may have three quarters of the active connections, because all clients of a proxy share its address. A quarter is left
    /// for other clients. One key may have half of the active connections, because all keys behind a proxy share one address.
    pub fn for_descriptors(most: u64) -> ConnectionLimits {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // An active connection may have a file open beside its socket.
        let share = (most.saturating_sub(OTHER_DESCRIPTORS) / 3).clamp(16, MAX_ACTIVE);
        ConnectionLimits { idle: share, active: share, active_of_address: share / 4 * 3, active_of_key: share / 2 }
    }
}

/// The open connections of this process.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: ConnectionLimits,
    active: Arc<Semaphore>,
    of_addresses: Shares<IpAddr>,
    of_keys: Shares<Prefix>,
    idle: Mutex<IdleConnections>,
    /// Notified when an idle connection may be closed, or is gone.
    changed: Notify,
}

#[derive(Debug, Default)]
struct IdleConnections {
    /// By a number that rises with the time at which each became idle.
    by_age: BTreeMap<u64, IdleConnection>,
    next: u64,
}

#[derive(Debug)]
struct IdleConnection {
    owner: IpAddr,
    /// The time before which it is not closed for another connection.
    spared_until: Instant,
    gone: CancellationToken,
}

impl IdleConnections {
    /// Closes the oldest idle connection of the address that has most. A spared one is closed only if its address has more than half of all
    /// idle connections.
    ///
    /// # Errors
    /// The time at which the first connection is not spared any more, if all are.
    fn close_one(&mut self) -> Result<(), Instant> {
        let now = Instant::now();
        let expendable = |connection: &IdleConnection| connection.spared_until <= now;
        let flood =
            self.most_of(|_| true).filter(|(_, number)| *number > self.by_age.len() / 2).map(|(owner, _)| owner);
        let most = self.most_of(expendable).map(|(owner, _)| owner);
        let mut idle = self.by_age.iter();
        let oldest = match (most, flood) {
            (Some(owner), _) => idle.find(|(_, it)| it.owner == owner && expendable(it)),
            // Otherwise an address that connects faster than its connections may be closed would keep all others waiting.
            (None, Some(owner)) => idle.find(|(_, it)| it.owner == owner),
            (None, None) => return Err(idle.map(|(_, it)| it.spared_until).min().unwrap_or(now)),
        };
        if let Some(closed) = oldest.map(|(number, _)| *number).and_then(|number| self.by_age.remove(&number)) {
            closed.gone.cancel();
        }
        Ok(())
    }

    /// Returns the address that has most of such idle connections, and their number. If several have as many, returns the address of the
    /// oldest connection.
    fn most_of(&self, such: impl Fn(&IdleConnection) -> bool) -> Option<(IpAddr, usize)> {
        let mut numbers = HashMap::<IpAddr, (usize, Reverse<u64>)>::new();
        for (age, it) in self.by_age.iter().filter(|(_, it)| such(it)) {
            numbers.entry(it.owner).or_insert((0, Reverse(*age))).0 += 1;
        }
        let most = numbers.into_iter().max_by_key(|(_, number)| *number);
        most.map(|(owner, (number, _))| (owner, number))
    }
}

impl Connections {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Connections> {
        let active = Arc::new(Semaphore::new(limits.active));
        Arc::new(Connections {
            limits,
            active,
            of_addresses: Shares::new(limits.active_of_address),
            of_keys: Shares::new(limits.active_of_key),
            idle: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Takes in a new connection from an address, and closes an idle one for it if there are too many. Waits for half a second at most, and
    /// only if all idle connections are spared and no address has more than half of them.
    pub(crate) async fn admit(self: &Arc<Connections>, address: IpAddr) -> Arc<Connection> {
        loop {
            let changed = self.changed.notified();
            let spared_until = {
                let mut idle = self.idle();
                let full = idle.by_age.len() >= self.limits.idle;
                match if full { idle.close_one() } else { Ok(()) } {
                    Ok(()) => break,
                    Err(until) => until,
                }
            };
            let _ = tokio::time::timeout_at(spared_until, changed).await;
        }
        let connection = Connection {
            owner: client_network(address),
            connections: Arc::clone(self),
            gone: CancellationToken::new(),
            stage: Mutex::new(Stage::New),
        };
        connection.become_idle(GRACE_TIMEOUT);
        Arc::new(connection)
    }

    /// Waits for a place among the active connections: of all, of the address and, with a key, of the key.
    async fn active_permit(&self, owner: IpAddr, key: Option<&Prefix>) -> Result<ActivePermit, Problem> {
        let of_key = key.map(|key| self.of_keys.permits(key));
        let of_address = self.of_addresses.permits(&owner);
        let all = async {
            // The key's permit comes first: a request that waits for it leaves the permits of its address to others.
            let of_key = match of_key {
                Some(of_key) => Some(of_key.acquire_owned().await.ok()?),
                None => None,
            };
            let of_address = of_address.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.active).acquire_owned().await.ok()?;
            Some(ActivePermit { _of_key: of_key, _of_address: of_address, _of_all: of_all })
        };
        let permit = tokio::time::timeout(ACTIVE_TIMEOUT, all).await;
        let refused =
            || Problem::new(Code::TooManyConnections, "too many requests are under way, of this address or of all");
        permit.ok().flatten().ok_or_else(refused)
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The permits of each address, or of each key: `most` of them.
#[derive(Debug)]
struct Shares<T> {
    most: usize,
    permits_of: Mutex<HashMap<T, Weak<Semaphore>>>,
}

impl<T: Hash + Eq + Clone> Shares<T> {
    fn new(most: usize) -> Shares<T> {
        Shares { most, permits_of: Mutex::default() }
    }

    fn permits(&self, owner: &T) -> Arc<Semaphore> {
        let mut permits_of = self.permits_of.lock().unwrap_or_else(PoisonError::into_inner);
        match permits_of.get(owner).and_then(Weak::upgrade) {
            Some(permits) => permits,
            None => {
                permits_of.retain(|_, permits| permits.strong_count() > 0);
                let permits = Arc::new(Semaphore::new(self.most));
                permits_of.insert(owner.clone(), Arc::downgrade(&permits));
                permits
            }
        }
    }
}

/// A place among the active connections, which is free again when this is dropped.
#[derive(Debug)]
struct ActivePermit {
    _of_key: Option<OwnedSemaphorePermit>,
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stage {
    New,
    /// Idle, under this number of `IdleConnections`.
    Idle(u64),
    Active {
        _permit: ActivePermit,
    },
}

/// A client's connection, which is idle or active.
#[derive(Debug)]
pub(crate) struct Connection {
    owner: IpAddr,
    connections: Arc<Connections>,
    gone: CancellationToken,
    stage: Mutex<Stage>,
}

impl Connection {
    /// Returns once the connection has to be closed for another one.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Records that a request begins. The connection is idle until access control lets the request in.
    pub(crate) fn begins(&self) {
        self.become_idle(GRACE_TIMEOUT);
    }

    /// Records that the answer was sent or broke off. The connection waits for its next request, and may be closed.
    pub(crate) fn rests(&self) {
        self.become_idle(Duration::ZERO);
        // A new connection may be waiting for one that can be closed.
        self.connections.changed.notify_waiters();
    }

    fn become_idle(&self, spared: Duration) {
        let mut stage = self.stage();
        let mut idle = self.connections.idle();
        if let Stage::Idle(number) = *stage
            && idle.by_age.remove(&number).is_none()
        {
            // It is being closed already.
            return;
        }
        let number = idle.next;
        idle.next += 1;
        let connection =
            IdleConnection { owner: self.owner, spared_until: Instant::now() + spared, gone: self.gone.clone() };
        idle.by_age.insert(number, connection);
        *stage = Stage::Idle(number);
    }

    /// Makes the connection active, once there is a place for it. Access control must have let its request in.
    async fn become_active(&self, key: Option<&Prefix>) -> Result<(), Problem> {
        let permit = self.connections.active_permit(self.owner, key).await?;
        let mut stage = self.stage();
        if let Stage::Idle(number) = *stage {
            self.connections.idle().by_age.remove(&number);
            self.connections.changed.notify_waiters();
        }
        *stage = Stage::Active { _permit: permit };
        Ok(())
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Stage::Idle(number) = *self.stage() {
            self.connections.idle().by_age.remove(&number);
            self.connections.changed.notify_waiters();
        }
    }
}

/// The layer that makes the connection of a request active, after access control let the request in.
pub(crate) async fn activate(
    connection: Option<Extension<Arc<Connection>>>,
    caller: Option<Extension<Caller>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(Extension(connection)) = connection
        && !is_open(path.as_ref().map_or("", MatchedPath::as_str))
    {
        connection.become_active(caller.as_ref().and_then(|Extension(caller)| caller.key())).await?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { idle: 3, active: 4, active_of_address: 3, active_of_key: 2 };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn there_is_room_for_what_a_process_may_have() {
        let ample = ConnectionLimits { idle: 1_000, active: 1_000, active_of_address: 750, active_of_key: 500 };
        assert_eq!(ConnectionLimits::for_descriptors(1 << 20), ample);
        assert_eq!(ConnectionLimits::for_descriptors(u64::MAX).active, 1_000);
        let scarce = ConnectionLimits::for_descriptors(1_024);
        assert_eq!(scarce, ConnectionLimits { idle: 258, active: 258, active_of_address: 192, active_of_key: 129 });
        assert!(scarce.idle + 2 * scarce.active + OTHER_DESCRIPTORS <= 1_024);
        assert_eq!(ConnectionLimits::for_descriptors(0).active_of_address, 12);
    }

    #[tokio::test]
    async fn a_new_connection_takes_the_place_of_the_oldest_idle_one_of_the_address_that_has_most() {
        let connections = Connections::new(LIMITS);
        let other = connections.admit(address(1)).await;
        let first = connections.admit(address(2)).await;
        let second = connections.admit(address(2)).await;
        for connection in [&other, &first, &second] {
            connection.rests();
        }
        first.rests();
        let _new = connections.admit(address(3)).await;
        assert_eq!(second.gone().now_or_never(), Some(()), "the one that has rested longest");
        assert_eq!((other.gone().now_or_never(), first.gone().now_or_never()), (None, None));
        second.rests();
        assert_eq!(connections.idle().by_age.len(), 3, "a closed connection stays closed");
    }

    #[tokio::test]
    async fn a_new_connection_is_spared_and_keeps_others_waiting_only_briefly() {
        let connections = Connections::new(LIMITS);
        let fresh = [connections.admit(address(1)).await, connections.admit(address(4)).await];
        let resting = connections.admit(address(2)).await;
        resting.rests();
        let _new = connections.admit(address(1)).now_or_never().expect("one rests");
        assert_eq!(resting.gone().now_or_never(), Some(()));
        let third = connections.admit(address(3)).await;
        assert_eq!(fresh.each_ref().map(|it| it.gone().now_or_never().is_some()), [true, false], "two of three");

        let connections = Connections::new(LIMITS);
        let fresh = [1, 2, 3].map(|last| connections.admit(address(last)).now_or_never().unwrap());
        let mut waits = std::pin::pin!(connections.admit(address(4)));
        assert!((&mut waits).now_or_never().is_none(), "nobody of them has more than half");
        fresh[1].rests();
        let begun = Instant::now();
        waits.await;
        assert!(begun.elapsed() < GRACE_TIMEOUT / 2, "a connection that becomes idle makes room");
        assert_eq!(fresh.map(|it| it.gone().now_or_never().is_some()), [false, true, false]);
        drop(third);
    }

    #[tokio::test]
    async fn a_flood_from_one_address_delays_nobody() {
        let connections = Connections::new(LIMITS);
        let other = connections.admit(address(2)).await;
        let mut flood = Vec::new();
        for _ in 0..1_000 {
            flood.push(connections.admit(address(1)).now_or_never().expect("it waits for nothing"));
        }
        let late = connections.admit(address(3)).now_or_never().expect("it waits for nothing");
        assert_eq!([&other, &late].map(|it| it.gone().now_or_never()), [None, None]);
        let stay = flood.iter().filter(|it| it.gone().now_or_never().is_none()).count();
        assert_eq!(stay, 1);
    }

    #[tokio::test]
    async fn active_connections_keep_their_places_and_one_address_leaves_some() {
        let connections = Connections::new(LIMITS);
        let mut active = Vec::new();
        for _ in 0..3 {
            let connection = connections.admit(address(1)).await;
            connection.become_active(None).await.unwrap();
            active.push(connection);
        }
        let late = connections.admit(address(1)).await;
        assert_eq!(late.become_active(None).await.unwrap_err().code(), "too_many_connections");
        let other = connections.admit(address(2)).await;
        other.become_active(None).await.unwrap();
        active.pop();
        late.become_active(None).await.unwrap();
        late.rests();
        assert!(active.iter().all(|it| it.gone().now_or_never().is_none()));
        assert_eq!(connections.active.available_permits(), 1);
        drop((late, active));
        assert_eq!(connections.idle().by_age.len(), 0);
    }
}
