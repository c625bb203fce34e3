//! Runs work on several threads: one thread finds the pieces and queues them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::client::Error;

/// The most pieces that wait for a thread.
const MAX_WAITING: usize = 64;

/// The pieces that wait for a thread.
pub(super) struct WorkQueue<'f, T> {
    sender: SyncSender<T>,
    is_stopped: &'f AtomicBool,
}

impl<T> WorkQueue<'_, T> {
    /// Queues a piece. Returns false if a thread has failed: then no more pieces are needed.
    pub(super) fn send(&self, piece: T) -> bool {
        !self.is_stopped.load(Ordering::Relaxed) && self.sender.send(piece).is_ok()
    }
}

/// Runs `find` on this thread, and `work` for each piece that it queues on others.
///
/// # Errors
/// The first error of `work`, else that of `find`.
pub(super) fn in_parallel<T: Send>(
    threads: usize,
    find: impl FnOnce(&WorkQueue<T>) -> Result<(), Error>,
    work: impl Fn(T) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let (sender, receiver) = sync_channel(MAX_WAITING);
    let (receiver, is_stopped) = (Mutex::new(receiver), AtomicBool::new(false));
    let next = || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let run = || {
        let mut done = Ok(());
        // A thread that has failed drops the pieces that it still gets. Else `find` would wait for a place in the
        // queue.
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
        let queue = WorkQueue { sender, is_stopped: &is_stopped };
        let found = find(&queue);
        // The threads end when nothing more can come.
        drop(queue);
        let join = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let done: Vec<Result<(), Error>> = workers.into_iter().map(join).collect();
        done.into_iter().collect::<Result<(), Error>>().and(found)
    })
}
