//! Work on several threads, which take it from one that finds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// How many pieces wait for a thread at most.
const WAITING: usize = 64;

/// Takes pieces of work.
pub(super) struct Feed<'f, T> {
    sender: SyncSender<T>,
    is_stopped: &'f AtomicBool,
}

impl<T> Feed<'_, T> {
    /// Hands a piece on. False: no more is needed, because a thread has failed.
    pub(super) fn give(&self, piece: T) -> bool {
        !self.is_stopped.load(Ordering::Relaxed) && self.sender.send(piece).is_ok()
    }
}

/// Has `work` done on so many threads for each piece that `find` gives, which runs on this one.
///
/// # Errors
/// The first one of `work`, else that of `find`.
pub(super) fn in_parallel<T: Send>(
    threads: usize,
    find: impl FnOnce(&Feed<T>) -> anyhow::Result<()>,
    work: impl Fn(T) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let (sender, receiver) = sync_channel(WAITING);
    let (receiver, is_stopped) = (Mutex::new(receiver), AtomicBool::new(false));
    let next = || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let run = || {
        let mut done = Ok(());
        // What still comes is taken by a thread that has failed, too, so that nobody waits to hand it on.
        while let Ok(piece) = next() {
            if !is_stopped.load(Ordering::Relaxed) {
                done = work(piece);
                is_stopped.fetch_or(done.is_err(), Ordering::Relaxed);
            }
            if done.is_err() {
                while next().is_ok() {}
            }
        }
        done
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let feed = Feed { sender, is_stopped: &is_stopped };
        let found = find(&feed);
        // The threads end when nothing more can come.
        drop(feed);
        let join = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let done: Vec<anyhow::Result<()>> = workers.into_iter().map(join).collect();
        done.into_iter().collect::<anyhow::Result<()>>().and(found)
    })
}
