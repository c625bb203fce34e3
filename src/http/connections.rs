//! Who holds a connection, and who has to give one up: nobody who hangs may keep others out, and least of all who asks for health.
//!
//! A *guest* has no request under way, or one that needs no key. Guests may take all the room there is for them, since they lose
//! it again: a new connection always gets in, in the place of another guest, of the address that has most. A *caller* has a request
//! under way that was let in. He is never thrown out for another's sake, so there are so many and no more, and fewer of one address.

use std::collections::{BTreeMap, HashMap};
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

use crate::http::access::is_open;
use crate::http::problem::Problem;
use crate::http::rate::whose;

/// More callers than this are of no use: they wait for a few connections to Postgres.
const MOST: usize = 1_000;
/// Descriptors that are none of clients: of Postgres, of files being written.
const OTHER_DESCRIPTORS: usize = 250;
/// A new connection has this long to send a request before it is given up for another one, and so has a guest's request.
const GRACE: Duration = Duration::from_millis(500);
/// A caller waits this long for others to end.
const CALLER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// So many may be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    guests: usize,
    callers: usize,
    callers_of_one: usize,
}

impl Room {
    /// What a process has that may have so many descriptors: 1,000 guests and 1,000 callers, if there are enough. One address has
    /// three quarters of the callers: a proxy brings everybody from one, and is left room for; and whatever comes by it, it leaves
    /// room for others.
    pub fn for_descriptors(most: u64) -> Room {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // A caller may have a file open.
        let share = (most.saturating_sub(OTHER_DESCRIPTORS) / 3).clamp(16, MOST);
        Room { guests: share, callers: share, callers_of_one: share / 4 * 3 }
    }
}

/// The connections there are.
#[derive(Debug)]
pub(crate) struct Connections {
    room: Room,
    callers: Arc<Semaphore>,
    callers_of: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
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
    /// Gives up the one that has been so longest, of the address that has most; `Err`: all are spared until then.
    fn give_one_up(&mut self) -> Result<(), Instant> {
        let now = Instant::now();
        let mut numbers = HashMap::<IpAddr, usize>::new();
        let expendable = |guest: &&Guest| guest.spared_until <= now;
        for guest in self.by_age.values().filter(expendable) {
            *numbers.entry(guest.owner).or_default() += 1;
        }
        let Some(most) = numbers.values().max().copied() else {
            return Err(self.by_age.values().map(|guest| guest.spared_until).min().unwrap_or(now));
        };
        let oldest = self.by_age.iter().find(|(_, guest)| expendable(guest) && numbers[&guest.owner] == most);
        if let Some(guest) = oldest.map(|(number, _)| *number).and_then(|number| self.by_age.remove(&number)) {
            guest.gone.cancel();
        }
        Ok(())
    }
}

impl Connections {
    pub(crate) fn new(room: Room) -> Arc<Connections> {
        let callers = Arc::new(Semaphore::new(room.callers));
        Arc::new(Connections {
            room,
            callers,
            callers_of: Mutex::default(),
            guests: Mutex::default(),
            left: Notify::new(),
        })
    }

    /// Takes a new connection of an address in. Another guest goes for it, or it waits for half a second at most.
    pub(crate) async fn admit(self: &Arc<Connections>, address: IpAddr) -> Arc<Connection> {
        loop {
            let left = self.left.notified();
            let spared_until = {
                let mut guests = self.guests();
                let full = guests.by_age.len() >= self.room.guests;
                match if full { guests.give_one_up() } else { Ok(()) } {
                    Ok(()) => break,
                    Err(until) => until,
                }
            };
            let _ = tokio::time::timeout_at(spared_until, left).await;
        }
        let connection = Connection {
            owner: whose(address),
            connections: Arc::clone(self),
            gone: CancellationToken::new(),
            stage: Mutex::new(Stage::New),
        };
        connection.is_guest(GRACE);
        Arc::new(connection)
    }

    /// Waits for a caller's place.
    async fn place(&self, owner: IpAddr) -> Result<Place, Problem> {
        let of_one = {
            let mut callers_of = self.callers_of.lock().unwrap_or_else(PoisonError::into_inner);
            match callers_of.get(&owner).and_then(Weak::upgrade) {
                Some(of_one) => of_one,
                None => {
                    callers_of.retain(|_, of_one| of_one.strong_count() > 0);
                    let of_one = Arc::new(Semaphore::new(self.room.callers_of_one));
                    callers_of.insert(owner, Arc::downgrade(&of_one));
                    of_one
                }
            }
        };
        let both = async {
            let of_one = of_one.acquire_owned().await.ok()?;
            Some(Place { _of_one: of_one, _of_all: Arc::clone(&self.callers).acquire_owned().await.ok()? })
        };
        let place = tokio::time::timeout(CALLER_TIMEOUT, both).await;
        place.ok().flatten().ok_or_else(Problem::too_many_connections)
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's place.
#[derive(Debug)]
struct Place {
    _of_one: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stage {
    New,
    /// Under this number.
    Guest(u64),
    Caller {
        _place: Place,
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
        self.is_guest(GRACE);
    }

    /// An answer has been sent, or there was none: it waits for the next request.
    pub(crate) fn rests(&self) {
        self.is_guest(Duration::ZERO);
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
    async fn calls(&self) -> Result<(), Problem> {
        let place = self.connections.place(self.owner).await?;
        let mut stage = self.stage();
        if let Stage::Guest(number) = *stage {
            self.connections.guests().by_age.remove(&number);
            self.connections.left.notify_waiters();
        }
        *stage = Stage::Caller { _place: place };
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
pub(crate) async fn take_place(
    connection: Option<Extension<Arc<Connection>>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(Extension(connection)) = connection
        && !is_open(path.as_ref().map_or("", MatchedPath::as_str))
    {
        connection.calls().await?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ROOM: Room = Room { guests: 3, callers: 4, callers_of_one: 3 };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn there_is_room_for_what_a_process_may_have() {
        assert_eq!(Room::for_descriptors(1 << 20), Room { guests: 1_000, callers: 1_000, callers_of_one: 750 });
        assert_eq!(Room::for_descriptors(u64::MAX).callers, 1_000);
        let scarce = Room::for_descriptors(1_024);
        assert_eq!(scarce, Room { guests: 258, callers: 258, callers_of_one: 192 });
        assert!(scarce.guests + 2 * scarce.callers + OTHER_DESCRIPTORS <= 1_024);
        assert_eq!(Room::for_descriptors(0).callers_of_one, 12);
    }

    #[tokio::test]
    async fn a_new_guest_takes_the_place_of_the_oldest_of_the_address_that_has_most() {
        let connections = Connections::new(ROOM);
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
        let connections = Connections::new(ROOM);
        let fresh = [connections.admit(address(1)).await, connections.admit(address(1)).await];
        let resting = connections.admit(address(2)).await;
        resting.rests();
        let _new = connections.admit(address(1)).await;
        assert_eq!(resting.gone().now_or_never(), Some(()));
        let begun = Instant::now();
        let _another = connections.admit(address(2)).await;
        assert!(begun.elapsed() < GRACE * 2);
        assert_eq!(fresh.map(|guest| guest.gone().now_or_never().is_some()), [true, false]);
    }

    #[tokio::test]
    async fn callers_keep_their_places_and_one_address_leaves_some() {
        let connections = Connections::new(ROOM);
        let mut callers = Vec::new();
        for _ in 0..3 {
            let caller = connections.admit(address(1)).await;
            caller.calls().await.unwrap();
            callers.push(caller);
        }
        let late = connections.admit(address(1)).await;
        assert_eq!(late.calls().await.unwrap_err().code(), "too_many_connections");
        let other = connections.admit(address(2)).await;
        other.calls().await.unwrap();
        callers.pop();
        late.calls().await.unwrap();
        late.rests();
        assert!(callers.iter().all(|caller| caller.gone().now_or_never().is_none()));
        assert_eq!(connections.callers.available_permits(), 1);
        drop((late, callers));
        assert_eq!(connections.guests().by_age.len(), 0);
    }
}
