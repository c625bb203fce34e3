//! Keeps connections open, or closes them for others: a client that hangs must not keep others out, least of all a
//! health check.
//!
//! A connection is a *guest* while it has no request under way, or one that needs no key. A new connection always gets
//! in: where there are as many guests as may be, a guest of the address with the most guests is closed for it. A
//! connection is a *caller* while it has a request under way that access control let in. A caller is never closed for
//! another connection, so the number of callers is limited: of all, of one address, and of one key.

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

/// More callers than this are of no use: all of them share a few connections to Postgres.
const MAX_CALLERS: usize = 1_000;
/// File descriptors for other things than clients: connections to Postgres, files that are being written.
const OTHER_DESCRIPTORS: usize = 250;
/// A new connection, or a guest's request, is not closed for another connection before this time.
const GRACE_TIMEOUT: Duration = Duration::from_millis(500);
/// A request waits at most this long for a caller's slot.
const CALLER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    guests: usize,
    callers: usize,
    callers_of_one: usize,
    callers_of_key: usize,
}

impl ConnectionLimits {
    /// The limits of a process that may have `most` file descriptors: 1,000 guests and 1,000 callers, where the
    /// descriptors suffice.
    ///
    /// One address may have three quarters of the callers: all clients of a proxy share its address, and a quarter is
    /// left for clients elsewhere. One key may have half of the callers, from whatever addresses: behind a proxy all
    /// keys share one.
    pub fn for_descriptors(most: u64) -> ConnectionLimits {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // A caller may have a file open beside its socket, and a guest has its socket.
        let share = (most.saturating_sub(OTHER_DESCRIPTORS) / 3).clamp(16, MAX_CALLERS);
        ConnectionLimits { guests: share, callers: share, callers_of_one: share / 4 * 3, callers_of_key: share / 2 }
    }
}

/// The open connections of this process.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: ConnectionLimits,
    callers: Arc<Semaphore>,
    of_addresses: Shares<IpAddr>,
    of_keys: Shares<Prefix>,
    guests: Mutex<Guests>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Guests {
    /// By a number that rises with the time at which each became a guest.
    by_age: BTreeMap<u64, Guest>,
    next: u64,
}

#[derive(Debug)]
struct Guest {
    owner: IpAddr,
    /// Not closed for another connection before then.
    spared_until: Instant,
    gone: CancellationToken,
}

impl Guests {
    /// Closes the oldest guest of the address that has most. A guest that is still spared is closed only if its address
    /// has more than half of all guests. `Err`: every guest is spared; the first of them until then.
    fn give_one_up(&mut self) -> Result<(), Instant> {
        let now = Instant::now();
        let expendable = |guest: &Guest| guest.spared_until <= now;
        let flood =
            self.most_of(|_| true).filter(|(_, number)| *number > self.by_age.len() / 2).map(|(owner, _)| owner);
        let most = self.most_of(expendable).map(|(owner, _)| owner);
        let mut guests = self.by_age.iter();
        let oldest = match (most, flood) {
            (Some(owner), _) => guests.find(|(_, guest)| guest.owner == owner && expendable(guest)),
            // An address that connects faster than its guests may be closed would hold up everybody else's connections.
            (None, Some(owner)) => guests.find(|(_, guest)| guest.owner == owner),
            (None, None) => return Err(guests.map(|(_, guest)| guest.spared_until).min().unwrap_or(now)),
        };
        if let Some(guest) = oldest.map(|(number, _)| *number).and_then(|number| self.by_age.remove(&number)) {
            guest.gone.cancel();
        }
        Ok(())
    }

    /// The address that has most of such guests, and how many it has. Of several addresses with as many, the one with
    /// the oldest guest.
    fn most_of(&self, such: impl Fn(&Guest) -> bool) -> Option<(IpAddr, usize)> {
        let mut numbers = HashMap::<IpAddr, (usize, Reverse<u64>)>::new();
        for (age, guest) in self.by_age.iter().filter(|(_, guest)| such(guest)) {
            numbers.entry(guest.owner).or_insert((0, Reverse(*age))).0 += 1;
        }
        let most = numbers.into_iter().max_by_key(|(_, number)| *number);
        most.map(|(owner, (number, _))| (owner, number))
    }
}

impl Connections {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Connections> {
        let callers = Arc::new(Semaphore::new(limits.callers));
        Arc::new(Connections {
            limits,
            callers,
            of_addresses: Shares::of(limits.callers_of_one),
            of_keys: Shares::of(limits.callers_of_key),
            guests: Mutex::default(),
            left: Notify::new(),
        })
    }

    /// Takes in a new connection from an address, and closes a guest for it where there are too many. Waits, half a
    /// second at most, only where all guests are new and no address has more than half of them.
    pub(crate) async fn admit(self: &Arc<Connections>, address: IpAddr) -> Arc<Connection> {
        loop {
            let left = self.left.notified();
            let spared_until = {
                let mut guests = self.guests();
                let full = guests.by_age.len() >= self.limits.guests;
                match if full { guests.give_one_up() } else { Ok(()) } {
                    Ok(()) => break,
                    Err(until) => until,
                }
            };
            let _ = tokio::time::timeout_at(spared_until, left).await;
        }
        let connection = Connection {
            owner: client_network(address),
            connections: Arc::clone(self),
            gone: CancellationToken::new(),
            stage: Mutex::new(Stage::New),
        };
        connection.is_guest(GRACE_TIMEOUT);
        Arc::new(connection)
    }

    /// Waits for a caller's slot: one of all, one of the address's and, with a key, one of the key's.
    async fn caller_slot(&self, owner: IpAddr, key: Option<&Prefix>) -> Result<CallerSlot, Problem> {
        let of_key = key.map(|key| self.of_keys.turns(key));
        let of_address = self.of_addresses.turns(&owner);
        let all = async {
            // The key's first: a request that waits for it leaves the slots of its address to others.
            let of_key = match of_key {
                Some(of_key) => Some(of_key.acquire_owned().await.ok()?),
                None => None,
            };
            let of_address = of_address.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.callers).acquire_owned().await.ok()?;
            Some(CallerSlot { _of_key: of_key, _of_address: of_address, _of_all: of_all })
        };
        let slot = tokio::time::timeout(CALLER_TIMEOUT, all).await;
        let refused =
            || Problem::new(Code::TooManyConnections, "too many requests are under way, of this address or of all");
        slot.ok().flatten().ok_or_else(refused)
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shares of the callers' slots: an address, or a key, has at most `most` of them.
#[derive(Debug)]
struct Shares<T> {
    most: usize,
    turns_of: Mutex<HashMap<T, Weak<Semaphore>>>,
}

impl<T: Hash + Eq + Clone> Shares<T> {
    fn of(most: usize) -> Shares<T> {
        Shares { most, turns_of: Mutex::default() }
    }

    fn turns(&self, owner: &T) -> Arc<Semaphore> {
        let mut turns_of = self.turns_of.lock().unwrap_or_else(PoisonError::into_inner);
        match turns_of.get(owner).and_then(Weak::upgrade) {
            Some(turns) => turns,
            None => {
                turns_of.retain(|_, turns| turns.strong_count() > 0);
                let turns = Arc::new(Semaphore::new(self.most));
                turns_of.insert(owner.clone(), Arc::downgrade(&turns));
                turns
            }
        }
    }
}

/// A caller's slot, which is free again when this is dropped.
#[derive(Debug)]
struct CallerSlot {
    _of_key: Option<OwnedSemaphorePermit>,
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stage {
    New,
    /// The number under which `Guests` has it.
    Guest(u64),
    Caller {
        _slot: CallerSlot,
    },
}

/// A client's connection, and whether it is a guest or a caller.
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

    /// A request begins: the connection is a guest until access control lets the request in.
    pub(crate) fn begins(&self) {
        self.is_guest(GRACE_TIMEOUT);
    }

    /// The answer was sent, or broke off: the connection waits for its next request, and may be closed.
    pub(crate) fn rests(&self) {
        self.is_guest(Duration::ZERO);
        // A new connection may be waiting for one that can be closed.
        self.connections.left.notify_waiters();
    }

    fn is_guest(&self, spared: Duration) {
        let mut stage = self.stage();
        let mut guests = self.connections.guests();
        if let Stage::Guest(number) = *stage
            && guests.by_age.remove(&number).is_none()
        {
            // It is being closed already.
            return;
        }
        let number = guests.next;
        guests.next += 1;
        let guest = Guest { owner: self.owner, spared_until: Instant::now() + spared, gone: self.gone.clone() };
        guests.by_age.insert(number, guest);
        *stage = Stage::Guest(number);
    }

    /// Access control let the request in: the connection is a caller, once there is a slot for it.
    async fn calls(&self, key: Option<&Prefix>) -> Result<(), Problem> {
        let slot = self.connections.caller_slot(self.owner, key).await?;
        let mut stage = self.stage();
        if let Stage::Guest(number) = *stage {
            self.connections.guests().by_age.remove(&number);
            self.connections.left.notify_waiters();
        }
        *stage = Stage::Caller { _slot: slot };
        Ok(())
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Stage::Guest(number) = *self.stage() {
            self.connections.guests().by_age.remove(&number);
            self.connections.left.notify_waiters();
        }
    }
}

/// The layer that takes a caller's slot for a request that access control let in.
pub(crate) async fn take_caller_slot(
    connection: Option<Extension<Arc<Connection>>>,
    caller: Option<Extension<Caller>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(Extension(connection)) = connection
        && !is_open(path.as_ref().map_or("", MatchedPath::as_str))
    {
        connection.calls(caller.as_ref().and_then(|Extension(caller)| caller.key())).await?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { guests: 3, callers: 4, callers_of_one: 3, callers_of_key: 2 };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn there_is_room_for_what_a_process_may_have() {
        let ample = ConnectionLimits { guests: 1_000, callers: 1_000, callers_of_one: 750, callers_of_key: 500 };
        assert_eq!(ConnectionLimits::for_descriptors(1 << 20), ample);
        assert_eq!(ConnectionLimits::for_descriptors(u64::MAX).callers, 1_000);
        let scarce = ConnectionLimits::for_descriptors(1_024);
        assert_eq!(scarce, ConnectionLimits { guests: 258, callers: 258, callers_of_one: 192, callers_of_key: 129 });
        assert!(scarce.guests + 2 * scarce.callers + OTHER_DESCRIPTORS <= 1_024);
        assert_eq!(ConnectionLimits::for_descriptors(0).callers_of_one, 12);
    }

    #[tokio::test]
    async fn a_new_guest_takes_the_place_of_the_oldest_of_the_address_that_has_most() {
        let connections = Connections::new(LIMITS);
        let other = connections.admit(address(1)).await;
        let first = connections.admit(address(2)).await;
        let second = connections.admit(address(2)).await;
        for guest in [&other, &first, &second] {
            guest.rests();
        }
        first.rests();
        let _new = connections.admit(address(3)).await;
        assert_eq!(second.gone().now_or_never(), Some(()), "the one that has rested longest");
        assert_eq!((other.gone().now_or_never(), first.gone().now_or_never()), (None, None));
        second.rests();
        assert_eq!(connections.guests().by_age.len(), 3, "who is given up stays so");
    }

    #[tokio::test]
    async fn who_has_just_come_is_spared_and_holds_up_nobody_for_long() {
        let connections = Connections::new(LIMITS);
        let fresh = [connections.admit(address(1)).await, connections.admit(address(4)).await];
        let resting = connections.admit(address(2)).await;
        resting.rests();
        let _new = connections.admit(address(1)).now_or_never().expect("one rests");
        assert_eq!(resting.gone().now_or_never(), Some(()));
        let third = connections.admit(address(3)).await;
        assert_eq!(fresh.each_ref().map(|guest| guest.gone().now_or_never().is_some()), [true, false], "two of three");

        let connections = Connections::new(LIMITS);
        let fresh = [1, 2, 3].map(|last| connections.admit(address(last)).now_or_never().unwrap());
        let mut waits = std::pin::pin!(connections.admit(address(4)));
        assert!((&mut waits).now_or_never().is_none(), "nobody of them has more than half");
        fresh[1].rests();
        let begun = Instant::now();
        waits.await;
        assert!(begun.elapsed() < GRACE_TIMEOUT / 2, "who comes to rest makes room");
        assert_eq!(fresh.map(|guest| guest.gone().now_or_never().is_some()), [false, true, false]);
        drop(third);
    }

    #[tokio::test]
    async fn a_flood_of_one_address_holds_up_nobody_at_all() {
        let connections = Connections::new(LIMITS);
        let other = connections.admit(address(2)).await;
        let mut flood = Vec::new();
        for _ in 0..1_000 {
            flood.push(connections.admit(address(1)).now_or_never().expect("it waits for nothing"));
        }
        let late = connections.admit(address(3)).now_or_never().expect("it waits for nothing");
        assert_eq!([&other, &late].map(|guest| guest.gone().now_or_never()), [None, None]);
        let stay = flood.iter().filter(|guest| guest.gone().now_or_never().is_none()).count();
        assert_eq!(stay, 1);
    }

    #[tokio::test]
    async fn callers_keep_their_places_and_one_address_leaves_some() {
        let connections = Connections::new(LIMITS);
        let mut callers = Vec::new();
        for _ in 0..3 {
            let caller = connections.admit(address(1)).await;
            caller.calls(None).await.unwrap();
            callers.push(caller);
        }
        let late = connections.admit(address(1)).await;
        assert_eq!(late.calls(None).await.unwrap_err().code(), "too_many_connections");
        let other = connections.admit(address(2)).await;
        other.calls(None).await.unwrap();
        callers.pop();
        late.calls(None).await.unwrap();
        late.rests();
        assert!(callers.iter().all(|caller| caller.gone().now_or_never().is_none()));
        assert_eq!(connections.callers.available_permits(), 1);
        drop((late, callers));
        assert_eq!(connections.guests().by_age.len(), 0);
    }
}
