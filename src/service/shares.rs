//! One rule for what clients share, such as connections: a client may take a place while it has fewer than half as many
//! as are left. So no client, and no few of them, can take all places, and a newcomer always finds one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A limited number of places that clients share.
#[derive(Debug)]
pub struct Shares<T> {
    max: usize,
    taken: Mutex<Taken<T>>,
}

#[derive(Debug)]
struct Taken<T> {
    total: usize,
    per_client: HashMap<T, usize>,
}

/// A place of a client; dropping it gives the place back.
#[derive(Debug)]
pub struct Share<T: Hash + Eq> {
    shares: Arc<Shares<T>>,
    client: T,
}

impl<T: Hash + Eq + Clone> Shares<T> {
    pub fn new(max: usize) -> Arc<Shares<T>> {
        Arc::new(Shares { max, taken: Mutex::new(Taken { total: 0, per_client: HashMap::new() }) })
    }

    /// Takes a place for a client. Returns `None` if the client has half as many as are left.
    pub fn take(self: &Arc<Shares<T>>, client: T) -> Option<Share<T>> {
        let mut taken = self.taken();
        let own = taken.per_client.get(&client).copied().unwrap_or(0);
        if 2 * own >= self.max - taken.total {
            return None;
        }
        taken.total += 1;
        taken.per_client.insert(client.clone(), own + 1);
        drop(taken);
        Some(Share { shares: Arc::clone(self), client })
    }
}

impl<T> Shares<T> {
    fn taken(&self) -> MutexGuard<'_, Taken<T>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Hash + Eq> Drop for Share<T> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.total -= 1;
        if let Some(own) = taken.per_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.per_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_finds_a_place_whatever_others_have_taken() {
        let shares = Shares::new(90);
        let take_all = |client| -> Vec<_> { std::iter::from_fn(|| shares.take(client)).collect() };
        let first = take_all(1);
        let second = take_all(2);
        let third = take_all(3);
        assert_eq!([first.len(), second.len(), third.len()], [30, 20, 14]);
        assert!(shares.take(1).is_none());
        drop(third);
        drop(first);
        let fourth = take_all(4);
        assert_eq!([fourth.len(), take_all(1).len()], [24, 16]);
        drop((second, fourth));
        assert!(shares.taken().per_client.is_empty());
    }
}
