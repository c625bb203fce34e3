//! Who holds a connection, and who has to give one up: nobody who hangs may keep others out, and least of all who asks for health.
//!
//! A *guest* has no request under way, or one that needs no key. Guests may take all the room there is for them, since they lose
//! it again: a new connection always gets in, in the place of another guest, of the address that has most. A *caller* has a request
//! under way that was let in. He is never thrown out for another's sake, so there are so many and no more, and fewer of one address or key.

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
use crate::http::problem::Problem;
use crate::http::rate::client_network;
use crate::key::Prefix;

/// More callers than this are of no use: they wait for a few connections to Postgres.
const MAX_CALLERS: usize = 1_000;
/// Descriptors that are none of clients: of Postgres, of files being written.
const OTHER_DESCRIPTORS: usize = 250;
/// A new connection has this long to send a request before it is given up for another one, and so has a guest's request.
const GRACE_TIMEOUT: Duration = Duration::from_millis(500);
/// A caller waits this long for others to end.
const CALLER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// So many may be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    guests: usize,
    callers: usize,
    callers_of_one: usize,
    callers_of_key: usize,
}

impl ConnectionLimits {
    /// What a process has that may have so many descriptors: 1,000 guests and 1,000 callers, if there are enough. One address has
    /// three quarters of the callers: a proxy brings everybody from one, and is left room for; and whatever comes by it, it leaves
    /// room for others. One key has half, wherever it is used: behind a proxy all keys share an address.
    pub fn for_descriptors(most: u64) -> ConnectionLimits {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // A caller may have a file open.
        let share = (most.saturating_sub(OTHER_DESCRIPTORS) / 3).clamp(16, MAX_CALLERS);
        ConnectionLimits { guests: share, callers: share, callers_of_one: share / 4 * 3, callers_of_key: share / 2 }
    }
}

/// The connections there are.
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
    /// In the order in which they became what they are.
    by_age: BTreeMap<u64, Guest>,
    next: u64,
}

#[derive(Debug)]
struct Guest {
    owner: IpAddr,
    /// Until then it is not given up.
    spared_until: Instant,
    gone: CancellationToken,
}

impl Guests {
    /// Gives up the one that has been so longest, of the address that has most; one that is spared only if its address has more
    /// than half of all. `Err`: all are spared until then.
    fn give_one_up(&mut self) -> Result<(), Instant> {
        let now = Instant::now();
        let expendable = |guest: &Guest| guest.spared_until <= now;
        let flood =
            self.most_of(|_| true).filter(|(_, number)| *number > self.by_age.len() / 2).map(|(owner, _)| owner);
        let most = self.most_of(expendable).map(|(owner, _)| owner);
        let mut guests = self.by_age.iter();
        let oldest = match (most, flood) {
            (Some(owner), _) => guests.find(|(_, guest)| guest.owner == owner && expendable(guest)),
            // Whoever comes faster than guests are spared would have everybody wait who comes after him.
            (None, Some(owner)) => guests.find(|(_, guest)| guest.owner == owner),
            (None, None) => return Err(guests.map(|(_, guest)| guest.spared_until).min().unwrap_or(now)),
        };
        if let Some(guest) = oldest.map(|(number, _)| *number).and_then(|number| self.by_age.remove(&number)) {
            guest.gone.cancel();
        }
        Ok(())
    }

    /// The address that has most of such guests, and how many; of several that have as many, the one whose guest is the oldest.
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

    /// Takes a new connection of an address in. Another guest goes for it. It waits, for half a second at most, only where all guests
    /// have just come and no address has more than half of them.
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

    /// Waits for a caller's place: among all, among those of his address, and of his key if he has one.
    async fn caller_slot(&self, owner: IpAddr, key: Option<&Prefix>) -> Result<CallerSlot, Problem> {
        let of_key = key.map(|key| self.of_keys.turns(key));
        let of_address = self.of_addresses.turns(&owner);
        let all = async {
            // The key's first: who waits for it leaves the places of his address to others.
            let of_key = match of_key {
                Some(of_key) => Some(of_key.acquire_owned().await.ok()?),
                None => None,
            };
            let of_address = of_address.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.callers).acquire_owned().await.ok()?;
            Some(CallerSlot { _of_key: of_key, _of_address: of_address, _of_all: of_all })
        };
        let slot = tokio::time::timeout(CALLER_TIMEOUT, all).await;
        slot.ok().flatten().ok_or_else(Problem::too_many_connections)
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has how many of the callers' places; nobody has more than `most`.
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

/// A caller's place.
#[derive(Debug)]
struct CallerSlot {
    _of_key: Option<OwnedSemaphorePermit>,
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stage {
    New,
    /// Under this number.
    Guest(u64),
    Caller {
        _slot: CallerSlot,
    },
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    owner: IpAddr,
    connections: Arc<Connections>,
    gone: CancellationToken,
    stage: Mutex<Stage>,
}

impl Connection {
    /// Returns once the connection has to go, for another one.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// A request has come.
    pub(crate) fn begins(&self) {
        self.is_guest(GRACE_TIMEOUT);
    }

    /// An answer has been sent, or there was none: it waits for the next request.
    pub(crate) fn rests(&self) {
        self.is_guest(Duration::ZERO);
        // It may go for a new one.
        self.connections.left.notify_waiters();
    }

    fn is_guest(&self, spared: Duration) {
        let mut stage = self.stage();
        let mut guests = self.connections.guests();
        if let Stage::Guest(number) = *stage
            && guests.by_age.remove(&number).is_none()
        {
            // It is given up already.
            return;
        }
        let number = guests.next;
        guests.next += 1;
        let guest = Guest { owner: self.owner, spared_until: Instant::now() + spared, gone: self.gone.clone() };
        guests.by_age.insert(number, guest);
        *stage = Stage::Guest(number);
    }

    /// Its request was let in: it is a caller's from now on.
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

/// The layer that gives a request that was let in a caller's place.
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
